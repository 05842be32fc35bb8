"""(imported) rows of bench_gpu.py that train: stages, waits, bit equality, settings in turns, the official forward."""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import peft
import torch
import transformers
from mmengine.optim import OptimWrapper

from benchmarks.data_inputs import like_llava_665k
from benchmarks.random_model import build_random, config_of
from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.datasets.plan.packing import pack_samples
from xtuner_plugins.engine import build_adamw
from xtuner_plugins.engine.run import steps
from xtuner_plugins.engine.run.loss_scaling import LossScalingOptimWrapper
from xtuner_plugins.models import blocks, losses, vlm
from xtuner_plugins.planning.hardware import gpu_of_device
from xtuner_plugins.planning.job import Batch, Job, plain
from xtuner_plugins.planning.memory import GIB, plan_memory
from xtuner_plugins.planning.plan import job_of
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.planning.work import work_of
from xtuner_plugins.ranges import ROW_MULTIPLE

BASE = "InternViT-300M-Qwen2.5-1.5B"
LORA = {"r": 64, "lora_alpha": 128, "lora_dropout": 0.05}
STAGES = {
    "warm-up": {},
    "lora": {"llm_lora": LORA},
    "qlora": {
        "llm_lora": LORA,
        "llm_quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    },
    "full": {"freeze_llm": False},
}
TINY = {
    "vision_config": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
    "llm_config": dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        layer_types=["full_attention"] * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    ),
}
WARM_UP = 2  # steps that aren't timed: the first makes moments, both load kernels
NEEDS_CUDA = {"skipped": "needs CUDA"}
WAIT = "called a synchronizing"  # how PyTorch's debug mode begins


def machine(bench) -> Iterator[dict]:
    """The device, what it can, and the versions."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    if bench.device == "cpu":
        yield {"device": f"CPU ({platform.machine()})", **found, **NEEDS_CUDA}
        return
    name, gpu = torch.cuda.get_device_name(), gpu_of_device(torch.cuda.get_device_name())
    free, total = torch.cuda.mem_get_info()
    yield {
        "device": name,
        "capability": torch.cuda.get_device_capability(),
        "peak_teraflops": gpu.teraflops if gpu else f"not known for {name!r}, so there is no MFU",
        "memory_gib": in_gib(total),
        "in_use_before_gib": in_gib(total - free),
        **found,
        "cuda": torch.version.cuda,
    }


def stage(bench, name: str) -> Iterator[dict]:
    """Steps of one stage: time, tokens, MFU, memory."""
    if name == "qlora":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            yield {"skipped": "needs bitsandbytes"}
            return
    trainer = Trainer(bench, name)
    first = [trainer.step(number)["loss"] for number in range(WARM_UP)]
    clock = Clock(bench.device)
    for number in range(WARM_UP, WARM_UP + bench.steps):
        trainer.step(number)
        clock.mark()
    speed, plan = trainer.rates(clock.seconds()), plan_memory(trainer.job, plain(1))
    planned = {"tensors": in_gib(plan.moments[plan.moment]), "all": in_gib(plan.total)}
    yield {"stage": name, "loss": first[0], **speed, "planned_gib": planned, "measured_gib": measured_gib(bench)}


def padded(bench) -> Iterator[dict]:
    """A plain loop: the official forward on a padded batch, with a mask and the logits of every position."""
    trainer = Trainer(bench, "full")
    model, optimizer = trainer.model, trainer.wrapper.optimizer
    model.model.language_model.set_attn_implementation("sdpa")
    clock, found = Clock(bench.device), []
    for number, samples in enumerate(trainer.packs):
        if number == WARM_UP:
            clock = Clock(bench.device)
        batch = collate(samples, pad_token_id=1)
        inputs = {key: batch[key].to(bench.device) for key in ("input_ids", "attention_mask", "labels")}
        with model.computing(torch.device(bench.device)):
            tiles = model.data_preprocessor.normalize(batch["tiles"].to(bench.device))
            loss = model.model(pixel_values=tiles.to(model.model.vision_model.dtype), **inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
        found.append(loss.detach())
    speed = trainer.rates(clock.seconds())
    yield {"stage": "full", "loss": found[0].item(), **speed, "measured_gib": measured_gib(bench)}


def waits(bench) -> Iterator[dict]:
    """Whether a step waits for the GPU: within forward and backward none may, and elsewhere each line is named."""
    if bench.device == "cpu":
        yield NEEDS_CUDA
        return
    for name in ("lora", "full"):
        yield {"stage": name, **waits_of(Trainer(bench, name))}


def waits_of(trainer: Trainer) -> dict:
    accumulate, within = steps._accumulate, "none"

    def strict(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return accumulate(*args)
        finally:
            torch.cuda.set_sync_debug_mode("warn")

    for number in range(WARM_UP):
        trainer.step(number)
    with mock.patch.object(steps, "_accumulate", strict), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.step(WARM_UP)
        except RuntimeError as error:
            if WAIT not in str(error):
                raise
            within = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-3:]
        torch.cuda.set_sync_debug_mode("default")
    lines = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if WAIT in str(each.message)]
    return {"in_forward_and_backward": within, "elsewhere_in_the_step": lines}


def repeat(bench) -> Iterator[dict]:
    """Whether the same seed, weights and batches give the same losses and the same trained weights, bit for bit."""
    for name in ("lora", "full"):
        (values, bits), (again, bits_again) = (losses_and_bits(Trainer(bench, name)) for _ in range(2))
        yield {"stage": name, "equal_losses": values == again, "equal_weights": bits == bits_again, "losses": values}


def losses_and_bits(trainer: Trainer) -> tuple[list[float], list[int]]:
    """The losses of four steps, and a sum over the bits of each trained parameter after them."""
    values = [trainer.step(number)["loss"] for number in range(4)]
    return values, [p.detach().view(torch.int32).sum(dtype=torch.int64).item() for p in trainer.trained]


def lora_cast(bench) -> Iterator[dict]:
    """LoRA's inputs cast to the dtype of its float32 weights, as PEFT does by itself, or left as they are."""

    def switch(trainer: Trainer, enabled: bool) -> None:
        layers = [module for module in trainer.model.modules() if hasattr(module, "cast_input_dtype_enabled")]
        assert layers, f"PEFT {peft.__version__} has no cast_input_dtype_enabled"
        for layer in layers:
            layer.cast_input_dtype_enabled = enabled

    ways = {"not cast": partial(switch, enabled=False), "cast": partial(switch, enabled=True)}
    yield from compare(bench, "lora", ways)


def encoder_autocast(bench) -> Iterator[dict]:
    """The frozen encoder outside autocast, or inside, where CUDA runs layer norms in float32."""

    def switch(trainer: Trainer, enabled: bool) -> None:
        encoder = trainer.model.model.vision_model

        def features(*args):
            with torch.autocast(bench.device, trainer.model.dtype, enabled=enabled):
                return type(encoder).patch_features(encoder, *args)

        encoder.patch_features = features

    ways = {"outside": partial(switch, enabled=False), "inside": partial(switch, enabled=True)}
    yield from compare(bench, "lora", ways)


def loss_chunks(bench) -> Iterator[dict]:
    """How many logits the head's loss makes at a time."""
    home = sys.modules[losses.LossHead.__module__]
    if not hasattr(home, "CHUNK_LOGITS"):
        yield {"skipped": f"{home.__name__} has no CHUNK_LOGITS"}
        return

    def switch(trainer: Trainer, logits: int) -> None:
        home.CHUNK_LOGITS = logits

    yield from compare(bench, "full", {f"2**{power}": partial(switch, logits=2**power) for power in (28, 27, 25)})


def compiled(bench) -> Iterator[dict]:
    """`compile_blocks`; on a CPU the blocks are traced, and run as they are."""

    def switch(trainer: Trainer, stance: str) -> None:
        torch.compiler.set_stance(stance)

    backend = "inductor" if bench.device == "cuda" else "eager"
    ways = {"eager": partial(switch, stance="force_eager"), "compiled": partial(switch, stance="default")}
    with mock.patch.object(vlm, "compile_model_blocks", partial(blocks.compile_model_blocks, backend=backend)):
        yield from compare(bench, "lora", ways, compile_blocks=True)


def compare(bench, stage: str, ways: dict[str, Callable[[Trainer], None]], **settings) -> Iterator[dict]:
    """Steps of one model in each way in turns, so that a change of the clock rate meets all of them."""
    trainer = Trainer(bench, stage, **settings)
    for switch in ways.values():
        switch(trainer)
        for number in range(WARM_UP):
            trainer.step(number)
    clock = Clock(bench.device)
    for number in range(WARM_UP, WARM_UP + bench.steps):
        for switch in ways.values():
            switch(trainer)
            trainer.step(number)
            clock.mark()
    seconds = clock.seconds()
    first = statistics.median(seconds[:: len(ways)])
    for index, way in enumerate(ways):
        taken = quartiles(seconds[index :: len(ways)])
        yield {"stage": stage, "way": way, "seconds": taken, "to_first": round(taken[1] / first, 3)}


class Clock:
    """Marks in time: events of the GPU, which nothing waits for before they are read; on a CPU its own clock."""

    def __init__(self, device: str):
        self.device, self.marks = device, []
        self.mark()

    def mark(self) -> None:
        if self.device == "cpu":
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Between each mark and the next."""
        if self.device == "cpu":
            return [end - start for start, end in pairwise(self.marks)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.marks)]


class Trainer:
    """A training model with random weights, its optimizer, and packs."""

    def __init__(self, bench, stage: str, **settings):
        gc.collect()  # an earlier model's cycles
        torch.manual_seed(0)
        self.bench = bench
        dtype = "float32" if bench.device == "cpu" else str(vlm.resolve_dtype("auto")).removeprefix("torch.")
        config, settings = model_config(bench.tiny), {"base": BASE, **STAGES[stage], **settings}
        self.model = build_random(config, settings, dtype, torch.device(bench.device))
        self.model.to(bench.device).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        wrapper = LossScalingOptimWrapper if self.model.dtype == torch.float16 else OptimWrapper
        self.wrapper = wrapper(build_adamw(self.trained, lr=1e-5), clip_grad={"max_norm": 1.0})
        self.packs = make_packs(bench.tiny, self.model.num_image_token, self.model.tile_size, bench.steps + WARM_UP)
        self.batches = [collate_packed(samples) for samples in self.packs]
        self.job = plan_job(config, {**settings, "dtype": dtype}, self.packs)
        if bench.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def step(self, number: int) -> dict[str, float]:
        """One step as in a run: one micro-batch and one update."""
        steps.seed_step(0, 0, number)
        return steps.run_step(self.model, self.wrapper, [dict(self.batches[number % len(self.batches)])])

    def rates(self, seconds: list[float]) -> dict:
        """Of the last steps, which took so long."""
        packs = self.packs[-len(seconds) :]
        tokens = [sum(len(sample["input_ids"]) for sample in pack) for pack in packs]
        found = {
            "steps": len(seconds),
            "seconds": quartiles(seconds),
            "tokens_per_second": quartiles([count / took for count, took in zip(tokens, seconds, strict=True)]),
        }
        if self.bench.device == "cpu":
            return found | {"mfu": "needs CUDA"}
        name = torch.cuda.get_device_name()
        gpu = gpu_of_device(name)
        if gpu is None:
            return found | {"mfu": f"the peak of {name!r} isn't known"}
        shares = [
            sum(useful_operations(self.job, sample) for sample in pack) / took / (gpu.teraflops * 1e12)
            for pack, took in zip(packs, seconds, strict=True)
        ]
        return found | {"mfu": quartiles(shares)}


def measured_gib(bench) -> dict | str:
    """The peaks that PyTorch counts, of tensors and with its cache, and what is in use on the device."""
    if bench.device == "cpu":
        return "needs CUDA"
    free, total = torch.cuda.mem_get_info()
    peaks = {"tensors": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {name: in_gib(amount) for name, amount in (*peaks.items(), ("on_device", total - free))}


def quartiles(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in statistics.quantiles(values, n=4, method="inclusive")]


def in_gib(amount: float) -> float:
    return round(amount / GIB, 2)


def model_config(tiny: bool):
    """`InternVLChatConfig` of the true model, or of a tiny one of the same classes."""
    config = config_of(BASES[BASE])
    if tiny:
        for part, fields in TINY.items():
            for name, value in fields.items():
                setattr(getattr(config, part), name, value)
        config.vision_config.image_size = config.force_image_size = 112
    return config


def plan_job(config, settings: dict, packs: list[list[dict]]) -> Job:
    """The job, for `planning`: its micro-batches are the packs, filled up as on a GPU."""
    batches = []
    for pack in packs:
        tokens, tiles, supervised = map(sum, zip(*map(sizes, pack), strict=True))
        batches.append(Batch(-(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE, tiles, supervised))
    return job_of({"model": settings}, shape_of(config.to_dict()), tuple(batches))


def sizes(sample: dict) -> tuple[int, int, int]:
    """Tokens, tiles and supervised tokens of a sample."""
    return len(sample["input_ids"]), sample["num_tiles"], int((sample["labels"] >= 0).sum())


def useful_operations(job: Job, sample: dict) -> float:
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
