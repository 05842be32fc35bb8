"""Keeps messages of libraries about themselves out of the terminal."""

import logging
import os


def quiet_imports() -> None:
    """Keeps bitsandbytes and DeepSpeed from reporting on import. Call it first in a ``main``.

    bitsandbytes warns about a kernel that isn't used here. DeepSpeed, which MMEngine's runner imports, warns on a
    machine without GPU that it found none; it is told so in advance.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
