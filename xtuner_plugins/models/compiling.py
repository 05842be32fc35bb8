"""`torch.compile` for the blocks of encoder and LLM: norms, rotations and activations become few kernels.

Each block is compiled in place, so no name of a parameter changes. Recomputation stays around the compiled block.
Attention over segments stays out of the graph: it depends on where samples begin, and compiling would begin again with
every batch.
"""

from __future__ import annotations

import os
import shutil

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from .attention import keep_out_of_graphs
from .encoders import used_blocks

BACKEND = "inductor"
_COMPILERS = ("g++", "c++", "clang++")


def compile_model_blocks(model: nn.Module, backend: str = BACKEND) -> int:
    """Compiles all blocks of an `InternVLChatModel` at their first use.

    Args:
        model: With adapters and recomputation set.
        backend: Of `torch.compile`.

    Returns:
        The number of blocks.

    Raises:
        ValueError: ZeRO-3, packed weights, stochastic depth, or no C++ compiler for ``inductor``.
    """
    packed = [name for name, each in model.named_modules() if type(each).__module__.startswith("bitsandbytes")]
    encoder_blocks = used_blocks(model.vision_model, model.select_layer)
    drops_blocks = any(getattr(block, "drop_path_rate", 0) for block in encoder_blocks)
    lacks_compiler, under_zero3 = backend == BACKEND and not has_compiler(), is_deepspeed_zero3_enabled()
    refused = {
        "ZeRO-3 gathers and releases weights inside of blocks; use --deepspeed deepspeed_zero2": under_zero3,
        f"packed weights ({', '.join(packed[:1])}) aren't compiled; set the quantization to None": packed,
        "stochastic depth would make each block of the encoder a graph of its own; set drop_path=0": drops_blocks,
        "it needs a C++ compiler, and none is found; install g++, name one in the variable CXX": lacks_compiler,
    }
    for reason, is_so in refused.items():
        if is_so:
            raise ValueError(f"compile_blocks=True: {reason}, or set compile_blocks=False")
    keep_out_of_graphs()
    blocks = [*encoder_blocks, *model.language_model.get_decoder().layers]
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    return len(blocks)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which ``inductor`` needs for every device."""
    return any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), *_COMPILERS)))
