"""Planned memory beside memory measured on fake tensors: the classes that train, at true shapes, without storage.

python benchmarks/bench_memory_plan.py [--only finetune_lora finetune_full] [--tokens 4096]

Forward and backward pass and AdamW's step run under PyTorch's `FakeTensorMode`; a dispatch mode adds up the storages
that are alive. `plain` holds trained weights in float32 under autocast, as one process and DDP do; `bf16` holds all in
bfloat16, as DeepSpeed does (its sharded states are arithmetic and not measured). The device is the CPU, because PyTorch
can't run the backward pass of fake CUDA tensors without CUDA; these take the way that they take on a GPU: attention
over the whole row in one kernel, dropout with a mask of one byte, the loss in large chunks whose products are added in
place. Weights in 4 and 8 bits and 8-bit moments can't be fake: tests/planning/test_memory.py measures them on real
tensors of a small model. Not measured is what the allocator, kernels and communication need.
"""

from __future__ import annotations

import argparse
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from benchmarks.random_model import build_random  # noqa: E402
from xtuner_plugins.models import attention, loss_head, vlm  # noqa: E402
from xtuner_plugins.models.rows import Row  # noqa: E402
from xtuner_plugins.planning import activations  # noqa: E402
from xtuner_plugins.planning.job import Batch, Job, Strategy  # noqa: E402
from xtuner_plugins.planning.memory import GIB, plan_memory, under  # noqa: E402
from xtuner_plugins.settings import load_config  # noqa: E402

CASES = (
    "pretrain_mlp",
    "pretrain_vit_mlp",
    "finetune_lora",
    "finetune_full",
    "finetune_packed",
    "internvl_v2_5_internlm2_5_8b_finetune",
)
VARIANTS = {  # label -> recipe, other settings of its model
    "pretrain_mlp, last blocks": ("pretrain_mlp", {"visual_encoder_last_layers": 4}),
    "finetune_lora, DoRA": ("finetune_lora", {"llm_lora": {"r": 64, "lora_dropout": 0.05, "use_dora": True}}),
}
HOLDINGS = {
    "plain": Strategy("one process", 1),
    "float16": Strategy("one process", 1),
    "bf16": Strategy("ZeRO-1 on one GPU", 1, 1),
}
DTYPE_OF = {"plain": "bfloat16", "float16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Measured:
    """Bytes.

    Attributes:
        weights: all parameters and buffers.
        kept: that live when the loss is computed, beside weights and inputs.
        peak: the largest sum in forward and backward passes, weights and inputs included.
        step: the largest sum in AdamW's step, weights included; the moments are made there.
    """

    weights: int
    kept: int
    peak: int
    step: int


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all storages made inside it until they are freed.

    Attributes:
        now, peak: bytes; `peak` since the last `restart`.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def restart(self) -> int:
        """The peak so far; the next one counts from now."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def measure(
    config: Any,
    settings: Mapping[str, Any],
    batch: Batch,
    holding: str,
    accumulation: int = 1,
    optimizer: str = "AdamW",
) -> Measured:
    """Trains one optimizer step on fake tensors; on real ones, of a small model, with what bitsandbytes computes.

    bitsandbytes can't wrap fake tensors, and its 8-bit optimizer reads values.

    Args:
        config: `InternVLChatConfig` of the model.
        settings: keywords of `VisionLanguageModel`.
        batch: a micro-batch.
        holding: key of `HOLDINGS`.
        accumulation: micro-batches of the step; two are enough for every further one.
        optimizer: `AdamW` or `AdamW8bit`.
    """
    real = optimizer != "AdamW" or any(settings.get(f"{part}_quantization") for part in ("llm", "visual_encoder"))
    mode = nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True)
    model = build_random(config, settings, DTYPE_OF[holding], torch.device("cpu" if real else "meta"))
    live, kept = LiveBytes(), []
    loss_of = vlm.next_token_loss

    def spy(*args, **kwargs):
        kept.append(live.now)
        return loss_of(*args, **kwargs)

    with mode, as_on_a_gpu():
        _materialize(model, holding)
        for tensor in (*model.parameters(), *model.buffers(), *_scales(model)):
            live.add(tensor)
        weights = live.now
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # On a GPU one fused kernel takes AdamW's step (see `engine.optimizers`).
        build = OPTIMIZERS.get(optimizer) if optimizer == "AdamW8bit" else partial(AdamW, fused=True)
        stepper = build(trained)
        with live, mock.patch.object(vlm, "next_token_loss", spy):
            pixels = torch.zeros(max(batch.tiles, 1), 3, model.tile_size, model.tile_size)[: batch.tiles]
            row, scale = _row(batch, model.num_image_token), torch.ones(())
            before = live.now
            for _ in range(min(accumulation, 2)):
                model(row, pixels, mean_weight=scale)["loss"].backward()
            peak = live.restart()
            stepper.step()
            step = live.restart()
    return Measured(weights, kept[0] - before, peak, step)


def _materialize(model: nn.Module, holding: str) -> None:
    """Puts fake tensors of the CPU in place of those of the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                dtype = torch.bfloat16 if holding == "bf16" else parameter.dtype
                data = torch.empty(parameter.shape, dtype=dtype)
                module._parameters[name] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _scales(model: nn.Module) -> Iterator[torch.Tensor]:
    """Of packed weights: they are no parameters."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            yield from (state.absmax, state.state2.absmax) if state.nested else (state.absmax,)


def _row(batch: Batch, tokens_per_tile: int) -> Row:
    positions = torch.arange(batch.tokens)
    return Row(
        input_ids=torch.zeros(1, batch.tokens, dtype=torch.int64),
        position_ids=positions[None],
        segments=attention.Segments((0, batch.tokens), torch.zeros(2, dtype=torch.int32)),
        image_positions=positions[: batch.tiles * tokens_per_tile].clone(),
        predicting=positions[: batch.supervised].clone(),
        targets=torch.zeros(batch.supervised, dtype=torch.int64),
        weights=None,
        owners=torch.zeros(batch.supervised, dtype=torch.int64),
        num_supervised=batch.supervised,
    )


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention in one kernel, dropout that keeps a mask instead of the noise, and a loss in chunks of a GPU's size."""

    def whole_row(module, query, key, value, mask, dropout=0.0, scaling=None, **others):
        grouped = key.shape[1] != query.shape[1]
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return output.transpose(1, 2), None

    def dropout(values, p=0.5, training=True, inplace=False):
        return torch.native_dropout(values, p, True)[0] if training and p else values

    chunk_shape = loss_head.chunk_shape
    functions = attention.ALL_ATTENTION_FUNCTIONS
    with (
        mock.patch.dict(functions._global_mapping, {attention.SEGMENTS: whole_row}),
        mock.patch("torch.nn.functional.dropout", dropout),
        mock.patch.object(loss_head, "chunk_shape", lambda words, device: chunk_shape(words, torch.device("cuda"))),
        mock.patch.object(loss_head, "_add_product", lambda total, left, right: None),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def planned(job: Job, holding: str) -> Measured:
    """The same sums by the plan."""
    plan, strategy = plan_memory(job, HOLDINGS[holding]), HOLDINGS[holding]
    job = under(job, strategy)
    batch = job.batches[0]
    kept = activations.kept_bytes(job, batch) + activations.cast_bytes(job)
    weights = plan.parts["frozen weights"] + plan.parts["trained weights"]
    states = sum(plan.parts.get(part, 0) for part in ("master weights", "optimizer", "buffers"))
    sums = {name: amount - states for name, amount in plan.moments.items()}
    step = plan.moments["step"] - activations.tile_bytes(job, batch)
    return Measured(weights, kept, max(amount for name, amount in sums.items() if name != "step"), step)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = (*CASES, *VARIANTS)
    parser.add_argument("--only", nargs="+", default=cases, metavar="CASE", help=f"of: {'; '.join(cases)}")
    parser.add_argument("--tokens", type=int, help="of a micro-batch (default: the recipe's own)")
    args = parser.parse_args(argv)
    from xtuner_plugins.planning.plan import job_of, model_of_base
    from xtuner_plugins.planning.published import known_base, meta_model

    print(f"{'recipe':34} {'held':5} {'recomputes':10} {'GiB of':8} {'planned':>8} {'measured':>8} {'ratio':>6}")
    for name in args.only:
        recipe, changes = VARIANTS.get(name, (name, {}))
        settings = load_config(recipe).to_dict()
        base = known_base(settings["model"]["base"])
        unpacked = {f"{part}_quantization": None for part in ("llm", "visual_encoder")}
        settings["model"] = {**settings["model"], **unpacked, **changes}
        job = job_of(settings, model_of_base(base))
        batch = job.batches[0]
        if args.tokens:
            share = args.tokens / batch.tokens
            batch = Batch(args.tokens, int(batch.tiles * share), int(batch.supervised * share))
        for holding in HOLDINGS:
            for recompute in (True, False):
                ours = {**settings["model"], "gradient_checkpointing": recompute}
                found = measure(meta_model(base).config, ours, batch, holding, job.accumulation)
                plan = planned(replace(job, batches=(batch,), recompute=recompute), holding)
                for term in ("weights", "kept", "peak", "step"):
                    if term == "step" and holding == "bf16":
                        continue  # DeepSpeed's own optimizer isn't AdamW on these weights
                    a, b = getattr(plan, term), getattr(found, term)
                    line = f"{term:8} {a / GIB:8.2f} {b / GIB:8.2f} {a / b:6.3f}"
                    print(f"{name:34} {holding:5} {recompute!s:10} {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
