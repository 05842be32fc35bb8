"""What command line tools share: a terminal that shows the user's own matters."""

import logging

# They report on import, at every start, what this project neither needs nor asked for (a kernel to be downloaded, the
# accelerator that was chosen).
_CHATTY = ("bitsandbytes.backends.cpu.ops", "DeepSpeed")


def quiet_imports() -> None:
    """Keeps libraries from reporting about themselves below the level of an error. Call it first in a ``main``."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
