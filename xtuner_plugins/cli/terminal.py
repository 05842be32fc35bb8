"""Keeps messages of libraries about themselves out of the terminal."""

import logging
import os
import sys
import warnings


def quiet_imports() -> None:
    """Keeps bitsandbytes, DeepSpeed and tqdm from reporting on import. Call it first in a ``main`` or a notebook.

    bitsandbytes warns about a kernel that isn't used here; it would load it from the hub where the package ``kernels``
    is installed, so that package is hidden. DeepSpeed, which MMEngine's runner imports, warns on a machine without GPU
    that it found none; it is told so in advance. In a notebook tqdm warns that it has no widgets and draws its bars as
    text.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")
    sys.modules.setdefault("kernels", None)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
