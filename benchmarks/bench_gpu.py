"""A first measurement of a GPU: kernels taken, speed, and memory beside the plan, at a true size.

    python benchmarks/bench_gpu.py [--rows kernels full ...] [--steps 10] [--out work_dirs/bench_gpu.jsonl]
    python benchmarks/bench_gpu.py --dry-run                  # every row at a tiny size, on a CPU

InternViT-300M and Qwen2.5-1.5B with random weights train on packs of 8192 tokens, samples as long as those of
LLaVA-665k, by the `run_step` of a run; a step is one micro-batch and one update. Each row runs in a process of its own,
so one that fails or runs out of memory ends alone. Each result is one line of JSON on stdout and in `--out`:

    machine     device, versions, peak
    kernels     which attention each part of a step took, the kernels with the most time, whether AdamW is fused
    full, lora, warm-up, qlora      seconds per step, tokens per second, MFU, memory beside the plan

Times are between events of the GPU; no step waits for them. `[a, b, c]` is lower quartile, median, upper quartile.
Tokens are those of samples, without padding. MFU counts the operations of forward and backward pass by
`planning/work.py`, without recomputation, over the published peak of the device.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from benchmarks.data_inputs import like_llava_665k  # noqa: E402
from benchmarks.random_model import build_random, config_of  # noqa: E402
from xtuner_plugins.datasets import collate_packed  # noqa: E402
from xtuner_plugins.datasets.plan.packing import pack_samples  # noqa: E402
from xtuner_plugins.dtypes import resolve_dtype  # noqa: E402
from xtuner_plugins.engine import build_adamw  # noqa: E402
from xtuner_plugins.engine.run import steps  # noqa: E402
from xtuner_plugins.engine.run.loss_scaling import LossScalingOptimWrapper  # noqa: E402
from xtuner_plugins.planning.hardware import gpu_of_device  # noqa: E402
from xtuner_plugins.planning.job import Batch, plain  # noqa: E402
from xtuner_plugins.planning.memory import GIB, plan_memory  # noqa: E402
from xtuner_plugins.planning.plan import job_of  # noqa: E402
from xtuner_plugins.planning.published import BASES  # noqa: E402
from xtuner_plugins.planning.shapes import shape_of  # noqa: E402
from xtuner_plugins.planning.work import work_of  # noqa: E402
from xtuner_plugins.processes import allocator_settings  # noqa: E402
from xtuner_plugins.ranges import ROW_MULTIPLE  # noqa: E402

BASE = "InternViT-300M-Qwen2.5-1.5B"
LORA = {"r": 64, "lora_alpha": 128, "lora_dropout": 0.05}
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
STAGES = {
    "full": {"freeze_llm": False},
    "lora": {"llm_lora": LORA},
    "warm-up": {},
    "qlora": {"llm_lora": LORA, "llm_quantization": FOUR_BITS},
}
ROWS = ("machine", "kernels", *STAGES)
SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
TINY = {
    "vision_config": dict(**SMALL, num_attention_heads=2, image_size=112),
    "llm_config": dict(
        **SMALL,
        layer_types=["full_attention"] * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    ),
}
WARM_UP = 2  # steps that aren't timed: the first makes moments, both load kernels
NEEDS_CUDA = "needs CUDA"
# In names of operators and of CUDA kernels; the first that is found. cuDNN's kernels have "flash" in their names, too.
KINDS = (
    ("varlen", r"varlen_attn"),
    ("cudnn", r"cudnn\w*(attention|sdpa|mha)"),
    ("mem-efficient", r"efficient_attention|fmha_cutlass|MemEffAttention"),
    ("flash", r"flash_attention|flash_(fwd|bwd)|flash::"),
    ("math", r"attention_math"),
    ("fused AdamW", r"_fused_adamw_"),
    ("foreach AdamW", r"_foreach_addcdiv_"),
)
PART = "part "
TOP = 6  # kernels named per part


def machine() -> dict:
    """The device, what it can, and the versions."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return {"device": f"CPU ({platform.machine()})", **found, "skipped": NEEDS_CUDA}
    name, (free, total) = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
    memory = {"memory_gib": in_gib(total), "in_use_before_gib": in_gib(total - free)}
    return {
        "device": name,
        "capability": torch.cuda.get_device_capability(),
        "peak_teraflops": peak(),
        **memory,
        **found,
    }


def peak() -> float | None:
    """Published 10**12 operations per second of this GPU; None where `planning/hardware.py` doesn't know it."""
    gpu = gpu_of_device(torch.cuda.get_device_name())
    return gpu and gpu.teraflops


def stage(trainer: Trainer, count: int) -> dict:
    """Steps of one stage: time, tokens, MFU, memory."""
    losses = [trainer.step(number)["loss"] for number in range(WARM_UP)]
    marks = [trainer.mark()]
    for number in range(WARM_UP, WARM_UP + count):
        trainer.step(number)
        marks.append(trainer.mark())
    packs, seconds = trainer.packs[WARM_UP:], trainer.seconds(marks)
    tokens = [sum(sizes(sample)[0] for sample in pack) for pack in packs]
    plan = plan_memory(trainer.job, plain(1))
    found = {
        "loss": losses[0],
        "seconds": quartiles(seconds),
        "tokens_per_second": quartiles([number / took for number, took in zip(tokens, seconds, strict=True)]),
        "planned_gib": {"tensors": in_gib(plan.moments[plan.moment]), "all": in_gib(plan.total)},
    }
    if trainer.device == "cpu":
        return found | dict.fromkeys(("mfu", "measured_gib"), NEEDS_CUDA)
    free, total = torch.cuda.mem_get_info()
    peaks = {"tensors": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    found["measured_gib"] = {name: in_gib(size) for name, size in (*peaks.items(), ("on_device", total - free))}
    work = [sum(useful_operations(trainer.job, sample) for sample in pack) for pack in packs]
    shares = [done / took / (peak() * 1e12) for done, took in zip(work, seconds, strict=True)] if peak() else None
    return found | {"mfu": shares and quartiles(shares)}


def kernels(trainer: Trainer) -> dict:
    """Of each part of a step: kinds of attention and of AdamW, milliseconds, and the kernels with the most of them."""
    for number in range(WARM_UP):
        trainer.step(number)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (trainer.device == "cuda")
    with marked_parts(trainer.model), profile(activities=activities, acc_events=True) as profiler:
        trainer.step(WARM_UP)
        trainer.mark(wait=True)
    kinds, times = defaultdict(set), defaultdict(Counter)
    for event in profiler.events():
        part = part_of(event)
        kinds[part].add(kind_of(event.name))
        for kernel in event.kernels:
            if kernel.name != event.name:  # the GPU's copy of a marked range
                times[part][kernel.name] += kernel.duration / 1000
    return {
        part: {
            "kinds": sorted(found - {None}),
            "ms": round(times[part].total(), 3) if trainer.device == "cuda" else NEEDS_CUDA,
            "top": {name[:160]: round(took, 3) for name, took in times[part].most_common(TOP)},
        }
        for part, found in sorted(kinds.items())
    }


def kind_of(name: str) -> str | None:
    """Which attention or AdamW an operator or kernel is."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), None)


def part_of(event) -> str:
    """The outermost marked range around an operator: blocks that run again in the backward pass belong to it."""
    part = "rest"
    while event is not None:
        if event.name.startswith(PART):
            part = event.name.removeprefix(PART)
        elif event.name.startswith("autograd::engine"):
            part = "backward"
        elif event.name.startswith("Optimizer.step"):
            part = "optimizer"
        event = event.cpu_parent
    return part


@contextmanager
def marked_parts(model) -> Iterator[None]:
    """Ranges of the profiler around encoder, projector, LLM and head."""
    llm = model.model.language_model
    calls = {
        "encoder": (model.model.vision_model, "patch_features"),
        "projector": (model.model.mlp1, "forward"),
        "llm": (llm.get_decoder(), "forward"),
        "head": (llm.get_output_embeddings(), "forward"),
    }
    with ExitStack() as stack:
        for part, (module, method) in calls.items():
            marked = record_function(PART + part)(getattr(module, method))
            stack.enter_context(mock.patch.object(module, method, marked))
        yield


class Trainer:
    """A training model with random weights, its optimizer, and packs; tiny on a CPU."""

    def __init__(self, device: str, name: str, count: int):
        torch.manual_seed(0)
        self.device, config = device, config_of(BASES[BASE])
        if device == "cpu":
            for part, fields in TINY.items():
                vars(getattr(config, part)).update(fields)
            config.force_image_size = TINY["vision_config"]["image_size"]
        settings, dtype = {"base": BASE, **STAGES[name]}, resolve_dtype("auto")
        dtype_name = str(dtype).removeprefix("torch.")
        self.model = build_random(config, settings, dtype_name, torch.device(device)).to(device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        wrapper = LossScalingOptimWrapper if dtype == torch.float16 else OptimWrapper
        self.wrapper = wrapper(build_adamw(trained, lr=1e-5), clip_grad={"max_norm": 1.0})
        self.packs = make_packs(device == "cpu", self.model.num_image_token, self.model.tile_size, WARM_UP + count)
        self.batches = [collate_packed(pack) for pack in self.packs]
        micro_batches = []  # filled up as on a GPU
        for pack in self.packs:
            tokens, tiles, supervised = map(sum, zip(*map(sizes, pack), strict=True))
            micro_batches.append(Batch(-(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE, tiles, supervised))
        model = {**settings, "dtype": dtype_name}
        self.job = job_of({"model": model}, shape_of(config.to_dict()), tuple(micro_batches))
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def step(self, number: int) -> dict[str, float]:
        """One step as in a run: one micro-batch and one update."""
        steps.seed_step(0, 0, number)
        return steps.run_step(self.model, self.wrapper, [dict(self.batches[number])])

    def mark(self, wait: bool = False):
        """A moment: an event of the GPU, which nothing waits for unless asked to; on a CPU its own clock."""
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if wait:
            torch.cuda.synchronize()
        return event

    def seconds(self, marks: list) -> list[float]:
        """Between each mark and the next."""
        if self.device == "cpu":
            return [end - start for start, end in pairwise(marks)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def quartiles(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in statistics.quantiles(values, n=4, method="inclusive")]


def in_gib(amount: float) -> float:
    return round(amount / GIB, 2)


def sizes(sample: dict) -> tuple[int, int, int]:
    """Tokens, tiles and supervised tokens of a sample."""
    return len(sample["input_ids"]), sample["num_tiles"], int((sample["labels"] >= 0).sum())


def useful_operations(job, sample: dict) -> float:
    """Operations of a sample's forward and backward pass, without those that recomputation repeats."""
    work = work_of(job, Batch(*sizes(sample)))
    return work.total - work.recomputed


def make_packs(tiny: bool, tokens_per_tile: int, side: int, count: int) -> list[list[dict]]:
    """Samples of so many packs, as the dataset gives them. Token 0 is that of images; a third of a text counts."""
    rng = np.random.default_rng(0)
    if tiny:
        max_tokens, max_tiles, tiles = 256, 8, rng.integers(0, 3, 20 * count)
        tokens = tiles * tokens_per_tile + rng.integers(20, 60, 20 * count)
    else:
        max_tokens, max_tiles = 8192, 26
        tokens, tiles = like_llava_665k(40 * count, 6)
        tokens = np.minimum(tokens, max_tokens)
    packs = pack_samples(np.arange(len(tokens)), tokens, tiles, max_tokens=max_tokens, max_tiles=max_tiles)

    def sample(index: int) -> dict:
        length, features = int(tokens[index]), int(tiles[index]) * tokens_per_tile
        ids = torch.from_numpy(rng.integers(1, 900, length))
        ids[1 : 1 + features] = 0
        labels = ids.clone()
        labels[: length - (length - features) // 3] = -100
        pixels = torch.from_numpy(rng.integers(0, 256, (int(tiles[index]), 3, side, side), dtype=np.uint8))
        of_image = {"tiles": pixels, "num_tiles": int(tiles[index])}
        return {"input_ids": ids, "labels": labels, "source": str(index), **of_image}

    return [[sample(index) for index in packs[number]] for number in range(count)]


def run_row(name: str, device: str, count: int) -> dict:
    """What a row finds, in the process that is its own."""
    if name == "machine":
        return machine()
    if name == "kernels":
        return kernels(Trainer(device, "full", count=1))
    return stage(Trainer(device, name, count), count)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="in this order")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, at least 2 (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/bench_gpu.jsonl"), help="(default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error(f"--steps {args.steps}: quartiles need at least 2")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; --dry-run runs the script on a CPU")
    os.environ.update(allocator_settings(os.environ, has_gpu=not args.dry_run))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    device, failed = "cpu" if args.dry_run else "cuda", False
    context = multiprocessing.get_context("fork" if args.dry_run else "spawn")  # CUDA doesn't survive a fork
    with open(args.out, "w", encoding="utf-8") as file:
        for name in args.rows:
            with ProcessPoolExecutor(1, context) as pool:
                try:
                    found = pool.submit(run_row, name, device, args.steps).result()
                except Exception as error:  # the other rows still run
                    failed, found = True, {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
            line = json.dumps({"row": name, **found})
            print(line, flush=True)
            print(line, file=file, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
