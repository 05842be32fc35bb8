"""Planned memory beside memory measured: classes that train on fake CUDA tensors, and states of live DeepSpeed engines.

    python benchmarks/bench_memory_plan.py [--base InternVL3_5-2B] [--only full lora] [--tokens 4096]
    python benchmarks/bench_memory_plan.py --states

The first runs forward and backward pass at true size under PyTorch's `FakeTensorMode`; a dispatch mode adds up the
storages that are alive. `plain` holds trained weights in float32 under autocast, as one process and DDP do; `bf16`
holds all in bfloat16, and drops each gradient as soon as it is made, as ZeRO does, which adds it to a sum elsewhere.
PyTorch's engine has no thread for a device that isn't there, so `run_backward` walks the graph itself, in the engine's
order. Weights in 4 bits can't be fake: `_pack` puts as many bytes in their place.

The second starts two ranks on the CPU with the shipped DeepSpeed files (buckets of a small model's size), as the
trainer starts them, and adds up what is alive in the second step.

Not measured is what the allocator, kernels and NCCL need.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import socket
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from benchmarks.fake_gpu import LiveBytes, fake_gpu, run_backward  # noqa: E402
from benchmarks.random_model import build_random, config_of  # noqa: E402
from xtuner_plugins.engine.run.runtime import _build_no_cpu_op  # noqa: E402
from xtuner_plugins.families import families_of, llm_family  # noqa: E402
from xtuner_plugins.models import attention  # noqa: E402
from xtuner_plugins.models.rows import Row  # noqa: E402
from xtuner_plugins.planning import activations as act  # noqa: E402
from xtuner_plugins.planning.job import FLOAT, Batch, Job, Strategy, from_deepspeed, plain  # noqa: E402
from xtuner_plugins.planning.memory import GIB, plan_memory, under  # noqa: E402
from xtuner_plugins.planning.plan import job_of  # noqa: E402
from xtuner_plugins.planning.published import BASES  # noqa: E402
from xtuner_plugins.planning.shapes import Linear, Shape, Stack, shape_of  # noqa: E402
from xtuner_plugins.settings import read_deepspeed  # noqa: E402

LORA = dict(r=64, lora_alpha=128, lora_dropout=0.05)
FOUR_BITS = dict(load_in_4bit=True)
CHOICES = {  # settings of the model
    "projector": {},
    "lora": {"llm_lora": LORA},
    "lora without dropout": {"llm_lora": {**LORA, "lora_dropout": 0.0}},
    "qlora": {"llm_lora": LORA, "llm_quantization": FOUR_BITS},
    "full": {"freeze_llm": False},
    "encoder lora": {"visual_encoder_lora": LORA},
    "encoder": {"freeze_visual_encoder": False},
    "last blocks": {"visual_encoder_last_layers": 4},
    "everything": {"freeze_visual_encoder": False, "freeze_llm": False},
}
HOLDINGS = {"plain": plain(1), "bf16": Strategy("ZeRO-1 on one GPU", 1, 1, gradient_size=FLOAT)}
# What a forward pass leaves for the backward pass.
KEPT = (act.llm_kept_bytes, act.encoder_kept_bytes, act.projector_kept_bytes, act.head_kept_bytes)
STATES = ("DDP", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
WIDTH, LAYERS, RANKS = 512, 24, 2  # of the small model behind `--states`
BUCKETS = dict.fromkeys(("reduce_bucket_size", "stage3_prefetch_bucket_size"), 600_000)


@dataclass(frozen=True)
class Measured:
    """Bytes.

    Attributes:
        weights: all parameters and buffers.
        kept: what a forward pass leaves for the backward pass, autocast's copies included.
        peak: the largest sum in forward and backward passes, weights and inputs included.
    """

    weights: int
    kept: int
    peak: int


def measure(config: Any, settings: Mapping[str, Any], batch: Batch, holding: str, accumulation: int = 1) -> Measured:
    """Trains micro-batches of one step on fake tensors.

    Args:
        config: `InternVLChatConfig` of the model.
        settings: keywords of `VisionLanguageModel`.
        batch: a micro-batch.
        holding: key of `HOLDINGS`.
        accumulation: micro-batches of the step; two are enough for every further one.
    """
    quantized = {part: settings.get(f"{part}_quantization") for part in ("visual_encoder", "llm")}
    unpacked = {key: value for key, value in settings.items() if not key.endswith("_quantization")}
    model, live = build_random(config, unpacked, "bfloat16", torch.device("meta")), LiveBytes()
    with fake_gpu():
        for part, options in quantized.items():
            if options:
                _pack(model, part)
        materialize(model, torch.bfloat16 if holding == "bf16" else None)
        for tensor in (*model.parameters(), *model.buffers()):
            live.add(tensor)
        weights = live.now
        with live:
            pixels = torch.zeros(max(batch.tiles, 1), 3, model.tile_size, model.tile_size, device="cuda")[: batch.tiles]
            row, scale = _row(batch, model.num_image_token), torch.ones((), device="cuda")
            before = live.now
            kept = []
            for _ in range(min(accumulation, 2)):
                loss = [model(row, pixels, mean_weight=scale)["loss"]]
                kept.append(live.now - before)
                run_backward(loss, drops_gradients=holding == "bf16")
    return Measured(weights, kept[0], live.peak)


def materialize(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Puts fake tensors of the GPU in place of those of the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                data = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def _pack(model: nn.Module, part: str) -> None:
    """Linear layers of a part hold bytes instead of weights, which each product unpacks, as bitsandbytes' do."""
    names = families_of(model.model.config.to_dict())[part].packed_linears
    for name, module in model.parts()[part].named_modules():
        if isinstance(module, nn.Linear) and name.removesuffix(".base_layer").endswith(names):
            weights, module.shape = module.weight.numel(), module.weight.shape
            scales = weights // 64 + FLOAT * (weights // (64 * 256))
            module.weight = None
            module.register_buffer("packed", torch.empty(weights // 2 + scales, dtype=torch.uint8, device="meta"))
            module.forward = types.MethodType(_unpack_and_multiply, module)


def _unpack_and_multiply(module: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    weight = torch.empty(module.shape, dtype=torch.bfloat16, device="cuda")
    key = weight.untyped_storage()._cdata

    def pack(tensor):
        is_weight = tensor.untyped_storage()._cdata == key
        return (tuple(tensor.shape), tensor.stride()) if is_weight else tensor

    def unpack(kept):
        return torch.empty_strided(*kept, dtype=torch.bfloat16, device="cuda") if isinstance(kept, tuple) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return F.linear(values.to(torch.bfloat16), weight, module.bias).to(values.dtype)


def _row(batch: Batch, tokens_per_tile: int) -> Row:
    positions = torch.arange(batch.tokens, device="cuda")
    targets = torch.zeros(batch.supervised, dtype=torch.int64, device="cuda")
    bounds = torch.zeros(2, dtype=torch.int32, device="cuda")
    return Row(
        input_ids=torch.zeros_like(positions)[None],
        position_ids=positions[None].clone(),
        segments=attention.Segments((0, batch.tokens), bounds),
        image_positions=positions[: batch.tiles * tokens_per_tile].clone(),
        predicting=targets,
        targets=targets.clone(),
        weights=None,
        owners=targets.clone(),
    )


def planned(job: Job, holding: str) -> Measured:
    """The same sums by the plan."""
    plan, strategy = plan_memory(job, HOLDINGS[holding]), HOLDINGS[holding]
    job = under(job, strategy)
    states = sum(plan.parts[part] for part in ("master weights", "optimizer", "buffers"))
    states += job.trained * FLOAT * (holding == "bf16")  # ZeRO's sums
    peak = max(amount for name, amount in plan.moments.items() if name != "step") - states
    kept = [each(job, job.batches[0]) for each in KEPT]
    kept.append(job.shape.table * FLOAT * (job.trains_head and not job.pairs))  # gradient, made in the forward pass
    kept.append(act.cast_bytes(job, kept=True))
    return Measured(plan.parts["frozen weights"] + plan.parts["trained weights"], sum(kept), peak)


def compare(
    base: str,
    choice: str,
    holding: str,
    batch: Batch,
    recompute: bool,
    accumulation: int = 1,
    blocks: int | None = None,
) -> dict[str, tuple[int, int]]:
    """Planned and measured bytes by name; of a base with so many blocks in each part, None for all."""
    config = config_of(BASES[base], blocks)
    ours = {"base": "x", "gradient_checkpointing": recompute, **CHOICES[choice]}
    settings = {"model": ours, "optim_wrapper": {"accumulative_counts": accumulation}}
    plan = planned(job_of(settings, shape_of(config.to_dict()), (batch,)), holding)
    found = measure(config, ours, batch, holding, accumulation)
    return {term: (getattr(plan, term), getattr(found, term)) for term in ("weights", "kept", "peak")}


def small_job(strategy: Strategy) -> Job:
    """Square layers without activations: a frozen encoder, a projector and an LLM that train."""
    square, row = Linear("q_proj", WIDTH, WIDTH), llm_family({"model_type": "qwen2"})
    stack = Stack(row, "layers", WIDTH, 0, LAYERS, 0, 0, 0, (square,), 0, 0, True, False)
    shape = Shape(replace(stack, layers=LAYERS // 4), stack, LAYERS // 4, 0, 0, 0, 0, 0, WIDTH, False)
    job = Job(shape, frozenset({"projector", "llm"}), (Batch(0, 0, 0),), accumulation=2)
    return replace(job, half=strategy.stage is not None)


def small_model() -> nn.Module:
    """The model of `small_job`."""
    blocks = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS // 4 + LAYERS)]
    encoder, llm = nn.Sequential(*blocks[: LAYERS // 4]), nn.Sequential(*blocks[LAYERS // 4 :])
    return nn.Sequential(encoder.requires_grad_(False), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), llm)


def states_of(name: str) -> tuple[Strategy, dict[str, Any]]:
    """A strategy on two ranks with buckets for a small model, and the file's content."""
    if name == "DDP":
        return plain(RANKS), {}
    settings = dict(read_deepspeed(name))
    settings["zero_optimization"] = {**settings["zero_optimization"], **BUCKETS}
    return from_deepspeed(name, settings, RANKS), settings


def measure_states(name: str) -> dict[str, int]:
    """Peaks of the second step's backward passes and of its update, on the first of two ranks."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        torch.multiprocessing.spawn(_train_rank, (name, port, f"{folder}/found"), nprocs=RANKS)
        return torch.load(f"{folder}/found", weights_only=True)


def _train_rank(rank: int, name: str, port: int, path: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    _build_no_cpu_op()
    torch.distributed.init_process_group("gloo")
    strategy, settings = states_of(name)
    model, live, found = small_model(), LiveBytes("cpu"), {}
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), fused=True)
    if strategy.stage is None:
        engine = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    else:
        engine = _start_engine(model.bfloat16(), optimizer, settings)
    for tensor in filter(torch.is_tensor, gc.get_objects()):
        live.add(tensor)
    values = torch.ones(1, WIDTH, dtype=torch.bfloat16 if strategy.stage else torch.float32)
    with live:
        for micro_batch in range(4):
            last = micro_batch % 2 == 1
            if strategy.stage is None:
                with nullcontext() if last else engine.no_sync():
                    engine(values).sum().backward()
            else:
                engine.set_gradient_accumulation_boundary(last)
                engine.backward(engine(values).sum(), scale_wrt_gas=False)
            if last:
                found["backward"] = live.restart()
                (engine if strategy.stage else optimizer).step()
                if strategy.stage is None:
                    optimizer.zero_grad()
                found["step"] = live.restart()
    if rank == 0:
        torch.save(found, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _start_engine(model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]):
    """As XTuner and `engine/run/strategy.py` start it."""
    import deepspeed

    from xtuner_plugins.engine.run.gradient_sums import hold_sums_alone, sum_gradients_as_told

    settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0}
    settings |= {"bf16": {"enabled": True}, "fp16": {"enabled": False}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    sum_gradients_as_told(engine.optimizer)
    hold_sums_alone(engine)
    return engine


def rows_of_states() -> Iterator[tuple[str, float, int, int]]:
    """Of each strategy, in bytes per trained weight."""
    for name in STATES:
        strategy, _ = states_of(name)
        job, found = small_job(strategy), measure_states(name)
        plan = plan_memory(job, strategy)
        peak = max(amount for moment, amount in plan.moments.items() if moment != "step")
        yield f"{name} on {RANKS} ranks, backward pass", job.trained, peak, found["backward"]
        yield f"{name} on {RANKS} ranks, update", job.trained, plan.moments["step"], found["step"]


def rows_of_passes(args: argparse.Namespace) -> Iterator[tuple[str, float, int, int]]:
    """Of each base, choice and holding, in GiB."""
    for base, choice in itertools.product(args.base, args.only):
        tiles = args.tokens // (shape_of(BASES[base].config).tokens_per_tile + 64)
        batch = Batch(args.tokens, tiles, args.tokens // 5)
        for holding, recompute in itertools.product(HOLDINGS, (True, False)):
            for term, pair in compare(base, choice, holding, batch, recompute).items():
                yield f"{base}, {choice}, {holding}{', recomputed' * recompute}: {term}", GIB, *pair


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", default=["InternVL2_5-1B", "InternVL3_5-2B"], choices=list(BASES))
    parser.add_argument("--only", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--tokens", type=int, default=4096, help="of a micro-batch (default: %(default)s)")
    parser.add_argument("--states", action="store_true", help="of live DeepSpeed engines")
    args = parser.parse_args(argv)
    rows = rows_of_states() if args.states else rows_of_passes(args)
    print(f"{'what':60} {'planned':>9} {'measured':>9} {'ratio':>6}")
    for name, unit, plan, found in rows:
        print(f"{name:60} {plan / unit:9.3f} {found / unit:9.3f} {plan / found:6.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
