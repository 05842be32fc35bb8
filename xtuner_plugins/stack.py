"""What xtuner 0.2.0 and mmengine 0.10.7 lack beside packages that are newer than they: the one list of differences.

    python -m xtuner_plugins.stack    # once in an environment with such packages: `make setup STACK=today` does it

From then on each Python process of that environment calls `install` when it starts, so that ``xtuner train`` works as
typed; nothing else of the project or of the packages is imported for it. The pinned packages need none of this.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


def _name_safetensors() -> None:
    """Transformers 5 requires safetensors and no longer asks; ``xtuner.utils`` imports the question.

    Ends with an xtuner that doesn't.
    """
    utils = importlib.import_module("transformers.utils")
    if not hasattr(utils, "is_safetensors_available"):
        utils.is_safetensors_available = lambda: True


def _stand_in_for_onebit() -> None:
    """DeepSpeed 0.19.8 has no 1-bit optimizers; MMEngine's strategy registers them whether or not they are used.

    A config that names one fails where it is built. Ends with an mmengine that asks first.
    """
    name = "deepspeed.runtime.fp16.onebit"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # DeepSpeed itself is missing, which MMEngine allows
            return
        sys.modules[name] = ModuleType(name, "Empty classes for MMEngine's registry.")
        for each in ("OnebitAdam", "OnebitLamb", "ZeroOneAdam"):
            setattr(sys.modules[name], each, type(each, (), {"__module__": name}))


# The module before whose import a difference is made up for.
DIFFERENCES: dict[str, Callable[[], None]] = {
    "xtuner.utils": _name_safetensors,
    "mmengine._strategy.deepspeed": _stand_in_for_onebit,
}

# What Python runs when it starts, unless the project is gone.
START = (
    'import importlib.util; importlib.util.find_spec("xtuner_plugins") and '
    'importlib.import_module("xtuner_plugins.stack").install()\n'
)


class _Before:
    """Finds no module; makes up for a difference when its module is about to be found by others."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in DIFFERENCES:
            DIFFERENCES[name]()
        return None


def install() -> None:
    """Makes up for each difference when its module is imported; safe to call more than once."""
    if _Before not in sys.meta_path:
        sys.meta_path.insert(0, _Before)


if __name__ == "__main__":
    path = Path(sysconfig.get_path("purelib"), "xtuner_plugins_stack.pth")
    path.write_text(START, encoding="utf-8")
    print(f"wrote {path}")
