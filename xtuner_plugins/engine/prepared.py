"""Prepares the process in which XTuner reads a config that a run has written: its ``custom_imports`` name this module.

Such a file is text alone, so it can't name `prepare_runtime` as ``model_resource`` does. Any other process that reads
the file, such as the launcher, is left as it is: there the preparation would start the launcher again.
"""

import sys

if any(hasattr(sys.modules.get(name), "check_cfg") for name in ("__main__", "xtuner.tools.train")):
    from . import prepare_runtime

    prepare_runtime()
