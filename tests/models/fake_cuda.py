"""The forward pass of a step at true width on fake CUDA tensors, and what it would ask of a device that isn't there.

`FakeTensorMode` runs the Python of the real classes with shapes, strides, dtypes and devices of every operation, but no
kernel; it raises where a value decides. Which kernel an attention takes is decided where no fake tensor comes, so
attention is watched where it is called. The backward pass can't run: PyTorch's engine has no thread for a device that
it doesn't find.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.bench_memory_plan import materialize
from benchmarks.random_model import build_random
from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.attention import Segments
from xtuner_plugins.models.rows import Row
from xtuner_plugins.planning.published import ENCODERS, LLMS

LAYERS = 2
MISTRAL = dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)
# Fields of the LLM's config.json, with the vocabulary of a base.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {**LLMS["Qwen2.5-1.5B"].config, "vocab_size": 151_674},
    "qwen3": {**LLMS["Qwen3-1.7B"].config, "vocab_size": 151_936},
    "internlm2": {**LLMS["InternLM2.5-1.8B"].config, "vocab_size": 92_553},
    "llama": {**LLMS["InternLM2.5-7B"].config, "vocab_size": 128_265},
    "mistral": {**MISTRAL, "model_type": "mistral", "vocab_size": 32_009},
    "phi3": {**LLMS["Phi-3-mini"].config, "vocab_size": 32_020},
    # With dense blocks: transformers' loop over experts asks the device which of them have tokens.
    "qwen3_moe": {**LLMS["Qwen3-30B-A3B"].config, "vocab_size": 151_936, "mlp_only_layers": list(range(LAYERS))},
}
TOKENS, TILES, SAMPLES, SUPERVISED = 8192, 13, 20, 4000  # of the row: a pack; more targets than a chunk of the loss has
HALF = (torch.float16, torch.bfloat16)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


class Packed(bnb.nn.Linear4bit):
    """A 4-bit layer as far as dtypes go: bitsandbytes' own can't be fake."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(self.compute_dtype), self.weight, self.bias).to(x.dtype)


class Watch(TorchDispatchMode):
    """What a forward pass asks of the device.

    Attributes:
        calls: operations by name.
        waits: copies between CPU and device, but those from pinned memory that nobody waits for.
        unaligned: matrix products in half precision with rows that don't begin at multiples of 16 bytes.
        float32_dropouts: dropouts of float32 values.
        layer_norms: dtypes of their inputs.
        attention: `scaled_dot_product_attention` by dtype, and "grouped" where keys have fewer heads than queries.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.attention, self.layer_norms = (collections.Counter() for _ in range(3))
        self.waits, self.unaligned, self.float32_dropouts = [], [], []
        self._pinned: list[torch.Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name
        if function is torch.ops.aten.addmm.dtype_out:  # FakeTensorMode knows neither this nor pinned memory
            result = kwargs["out"]
        elif function is torch.ops.aten._pin_memory.default:
            result = torch.empty(args[0].shape, dtype=args[0].dtype)
            self._pinned.append(result)
        else:
            result = function(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.calls[name] += 1
        if name in ("aten::_to_copy", "aten::copy_") and len({each.device.type for each in tensors}) > 1:
            is_pinned = any(tensors[0] is each for each in self._pinned)
            self.waits += [] if is_pinned and kwargs.get("non_blocking") else [name]
        if name in PRODUCTS and not all(map(_is_aligned, tensors)):
            self.unaligned.append((name, [(tuple(each.shape), each.stride()) for each in tensors]))
        if name in ("aten::native_dropout", "aten::bernoulli") and tensors[0].dtype == torch.float32:
            self.float32_dropouts.append(tuple(tensors[0].shape))
        if name == "aten::native_layer_norm":
            self.layer_norms[_name(tensors[0].dtype)] += 1
        return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_aligned(matrix: torch.Tensor) -> bool:
    if matrix.dtype not in HALF or matrix.dim() < 2:  # a bias has one
        return True
    steps = sorted(matrix.stride()[-2:])
    return steps[0] == 1 and steps[1] % 8 == 0 and matrix.storage_offset() % 8 == 0


class _WatchAttention(TorchFunctionMode):
    def __init__(self, watch: Watch):
        super().__init__()
        self._watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            query, key = args[:2]
            is_grouped = query.shape[1] != key.shape[1]
            self._watch.attention["grouped" if is_grouped else _name(query.dtype)] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def fake_cuda(capability: tuple[int, int]) -> Iterator[None]:
    """Tensors are fake, and there is a CUDA device of this compute capability."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())  # first: it makes up for what C++ asks a device where there is none
        for name, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.get_device_capability": lambda device=None: capability,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch._subclasses.fake_tensor.init_gpu_context": lambda device: None,
        }.items():
            stack.enter_context(mock.patch(name, value))
        yield


def build(family: str, dtype: torch.dtype, **settings: Any) -> VisionLanguageModel:
    """The training model of a family with InternViT-300M at true width, on the meta device; 4 bits are `Packed`.

    Args:
        family: of `FAMILIES`.
        dtype: that it computes in.
        **settings: of `VisionLanguageModel`.
    """
    config = InternVLChatConfig(
        vision_config={**ENCODERS["300M-V2_5"].config, "num_hidden_layers": LAYERS},
        llm_config={**FAMILIES[family], "num_hidden_layers": LAYERS},
        force_image_size=448,
        template="internvl2_5",
    )
    # Recomputation would ask for the state of a random generator.
    settings = {"base": "x", "gradient_checkpointing": False, **settings}
    with mock.patch("benchmarks.random_model.linear_quantizer", _packer):
        return build_random(config, settings, _name(dtype), torch.device("meta"))


def _packer(prefix: str, names: tuple[str, ...], _: Mapping[str, Any], dtype: torch.dtype):
    def pack(model: nn.Module, name: str) -> None:
        parent, _, last = name.rpartition(".")
        if name.startswith(prefix) and last in names:
            linear = model.get_submodule(name)
            sizes = (linear.in_features, linear.out_features, linear.bias is not None)
            setattr(model.get_submodule(parent), last, Packed(*sizes, compute_dtype=dtype).requires_grad_(False))

    return pack


def run_forward(model: VisionLanguageModel, held: torch.dtype | None = None) -> Watch:
    """The forward pass of a pack on the fake device.

    Args:
        model: on the meta device.
        held: dtype of all weights, as under DeepSpeed; None leaves trained ones in float32, as without it.
    """
    materialize(model, held)
    positions = torch.arange(TOKENS, device="cuda")
    bounds = tuple(TOKENS * index // SAMPLES for index in range(SAMPLES + 1))
    row = Row(
        input_ids=torch.zeros_like(positions)[None],
        position_ids=torch.cat([torch.arange(end - start, device="cuda") for start, end in pairwise(bounds)])[None],
        segments=Segments(bounds, torch.zeros(SAMPLES + 1, dtype=torch.int32, device="cuda")),
        image_positions=positions[: TILES * model.num_image_token].clone(),
        predicting=positions[:SUPERVISED].clone(),
        targets=positions[:SUPERVISED].clone(),
        weights=None,
        owners=positions[:SUPERVISED].clone(),
    )
    pixels = torch.zeros(TILES, 3, model.tile_size, model.tile_size, device="cuda")
    mean_weight = torch.ones((), device="cuda")
    with Watch() as watch, _WatchAttention(watch):
        outputs = model(row, pixels, mean_weight=mean_weight)
    assert outputs["loss"].device.type == "cuda" and outputs["loss"].dtype == torch.float32
    return watch
