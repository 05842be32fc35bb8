"""The verification of an export with its probe in this process, because a fresh one takes seconds to start."""

import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from unittest import mock

from xtuner_plugins.inference import verify as module

MODULES = tempfile.TemporaryDirectory(prefix="modules-")  # where transformers copies the code of exports


def _run(command, *, env, **_):
    """The probe's end as `subprocess.run` tells it; the probe makes this project impossible to import meanwhile."""
    assert env["HF_HUB_OFFLINE"] == "1"
    own = sys.modules["xtuner_plugins"]
    try:
        runpy.run_path(command[2])["main"](*map(Path, command[3:]))
    except (Exception, SystemExit) as error:
        return CompletedProcess(command, 1, "", traceback.format_exception_only(error)[-1])
    finally:
        sys.modules["xtuner_plugins"] = own
    return CompletedProcess(command, 0)


@mock.patch("transformers.dynamic_module_utils.HF_MODULES_CACHE", MODULES.name)
@mock.patch.object(module, "subprocess", SimpleNamespace(run=_run))
def probed(check, *args):
    """What a function of `verify`, or that itself, makes of these arguments."""
    return check(*args)
