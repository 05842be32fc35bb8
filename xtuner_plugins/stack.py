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
from typing import Any


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


def builds_tokenizers_anew() -> bool:
    """Whether transformers takes the vocabulary alone from ``tokenizer.json``, and the rest from a class of its own.

    Release 5 does. What the file says of spaces, digits and normal forms is lost, and Llama's classes read a
    ``tokenizer.model`` otherwise than sentencepiece. Ends when a release reads both as they are.
    """
    import transformers

    return int(transformers.__version__.partition(".")[0]) >= 5


def separate_experts(model: Any) -> Any:
    """Gives the experts of Qwen3-MoE linear layers again, as transformers 4 had them and checkpoints name them.

    Transformers 5 holds all experts of a block in two tensors. LoRA, 4 bits, plans and checkpoints of training know
    linear layers. Ends with transformers 4, when all of them know the two tensors.

    Args:
        model: The hub's chat model; its weights are not filled yet.

    Returns:
        The same model.
    """
    blocks = [each for each in model.modules() if type(each).__name__ == "Qwen3MoeSparseMoeBlock"]
    if not blocks or not hasattr(blocks[0].experts, "gate_up_proj"):
        return model
    import torch
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP

    class Experts(torch.nn.ModuleList):
        """Each on its own tokens; those without any run, too, so that ranks agree on what runs."""

        def forward(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
            """Sum over the experts of each token of ``x`` [N, D]; ``chosen`` and their ``shares`` are [N, K]."""
            total = torch.zeros_like(x)
            for number, expert in enumerate(self):
                token, place = torch.where(chosen == number)
                total.index_add_(0, token, expert(x[token]) * shares[token, place, None])
            return total

    config = model.language_model.config
    for block in blocks:
        experts = (Qwen3MoeMLP(config, config.moe_intermediate_size) for _ in range(config.num_experts))
        block.experts = Experts(experts)
    return model


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
