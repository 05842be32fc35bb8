"""What differs between the pinned stack and today's newest releases (`make setup STACK=today`).

    difference                                              since               until
    transformers.utils.is_safetensors_available is missing  transformers 5      xtuner no longer asks for it
    deepspeed.runtime.fp16.onebit is missing                DeepSpeed 0.19.8    mmengine no longer registers its classes
    varlen_attn wants enable_gqa for grouped heads          torch 2.12          torch 2.11 is no longer supported
    CLIPVisionModel is the tower, not a class around it     transformers 5      transformers 4 is no longer supported

xtuner 0.2.0 and mmengine 0.10.7 need the first two before any code of this project runs, because `xtuner train` imports
them first. So `python -m xtuner_plugins.stack` writes a line into site-packages that imports this module whenever
Python starts there. Each name is given only where it is missing.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ONE_BIT = "deepspeed.runtime.fp16.onebit"


def accepted(function: Callable, **options) -> dict[str, Any]:
    """Those options that this release's ``function`` has."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


class StandIns(MetaPathFinder, Loader):
    """Finds the missing module, and completes the other one before xtuner asks for it."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name == ONE_BIT and PathFinder.find_spec(name, path) is None:
            return ModuleSpec(name, self)
        if name == "xtuner.utils":
            utils = importlib.import_module("transformers.utils")
            if not hasattr(utils, "is_safetensors_available"):
                utils.is_safetensors_available = lambda: True
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module) -> None:
        for name in ("OnebitAdam", "OnebitLamb", "ZeroOneAdam"):
            setattr(module, name, type(name, (), {"__init__": _gone}))


def _gone(optimizer, *args, **kwargs) -> None:
    raise ImportError(f"DeepSpeed no longer has {type(optimizer).__name__}; choose another optimizer")


def install() -> None:
    """Makes the names known in this process."""
    if not any(isinstance(finder, StandIns) for finder in sys.meta_path):
        sys.meta_path.insert(0, StandIns())


if __name__ == "__main__":
    known = "import importlib.util as u; u.find_spec('xtuner_plugins')"
    line = f"{known} and __import__('xtuner_plugins.stack').stack.install()\n"
    Path(sysconfig.get_path("purelib"), "xtuner_plugins_stack.pth").write_text(line, encoding="ascii")
