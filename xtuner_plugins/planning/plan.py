"""What a config will need: reads model, data and batch from it, plans them, says what to change, and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..families import PARTS
from ..files import is_url, names_data
from ..ranges import OBJECTIVES, check_tiles
from ..settings import ConfigError, value_at
from .hardware import GPU, UTILIZATION
from .job import MOMENTS, Adapters, Batch, Job, Strategy, obstacle
from .memory import GIB, Plan, plan_memory, under
from .published import NUM_SAMPLES, known_base
from .shapes import Shape, shape_of
from .work import Work, work_of

LORA_RANK = 8  # PEFT's default
BLOCK = 256  # weights per scale of an 8-bit moment
TEXT_TOKENS = 512  # of a sample, where nobody has measured
# Part that trains beside the others (consistency) or alone (router), by what the class of a Flash model is called.
FLASH = {"FlashConsistencyModel": "mlp2", "FlashRouterModel": "router"}


def model_of(path: str) -> Shape:
    """The model of a config's `base`: the directory if it is there, else the published model that it stands for.

    Raises:
        ConfigError: No such directory, and no published model of that name.
    """
    if Path(path, "config.json").is_file():
        from ..datasets.base import read_base  # imports transformers

        return shape_of(read_base(path).to_dict())
    base = known_base(path)
    if base is None:
        said = f"model directory {path!r} isn't there, and no shipped config says what is in it; build it with "
        raise ConfigError(f"{said}tools/build_base_model.py, or give a similar model's with --set base=...")
    return shape_of(base.config)


def job_of(settings: Mapping[str, Any], shape: Shape, batches: tuple[Batch, ...] | None = None) -> Job:
    """The job of a config.

    Args:
        settings: the config as a dict of its keys; types may be lazy.
        shape: what it trains, see `model_of`.
        batches: measured micro-batches; None takes the largest that the config allows.

    Raises:
        ConfigError: Nothing would train, or a key is missing.
    """
    ours, wrapper = settings["model"], settings.get("optim_wrapper") or {}
    families = {"visual_encoder": shape.encoder.family, "llm": shape.llm.family}
    lora = {part: ours[f"{part}_lora"] for part in families if ours.get(f"{part}_lora")}
    flash = next((part for kind, part in FLASH.items() if kind in str(ours.get("type"))), None)
    whole = {part for part, row in PARTS.items() if not ours.get(f"freeze_{part}", row.is_frozen)}
    recompute, of_encoder = ours.get("gradient_checkpointing", True), ours.get("visual_encoder_checkpointing")
    # Moments of 8 bits have a scale per block.
    moments = MOMENTS / 4 + MOMENTS / BLOCK if "8bit" in str(value_at(wrapper, "optimizer.type")) else MOMENTS
    job = Job(
        shape=shape,
        whole=frozenset({flash} if flash == "router" else whole | {flash} - {None}),  # the router trains alone
        batches=batches or largest_batches(settings, shape),
        adapters={part: _adapters(own, families[part].lora_targets) for part, own in lora.items()},
        quantized={part: row.packed_linears for part, row in families.items() if ours.get(f"{part}_quantization")},
        last_layers=ours.get("visual_encoder_last_layers") or 0,
        train_head=ours.get("train_head", False),
        recompute=recompute,
        recompute_encoder=recompute if of_encoder is None else bool(of_encoder),
        on_host=ours.get("offload_activations", False),
        half=ours.get("dtype", "auto") != "float32",
        accumulation=wrapper.get("accumulative_counts", 1),
        moments=moments,
        pairs=bool(ours.get("objectives")) or flash == "mlp2",
        reference=(_needs_reference(ours) or flash == "mlp2") and not ours.get("precomputed_reference"),
        sharing=ours.get("sequence_parallel", 1),
    )
    if not job.trained:
        raise ConfigError("model: nothing would train: every part is frozen and no LoRA is set")
    return job


def _adapters(lora: Mapping[str, Any], default: Sequence[str]) -> Adapters:
    if lora.get("use_dora"):
        raise ConfigError("use_dora=True isn't planned: it takes more than LoRA; use_dora=False plans the least")
    return Adapters(lora.get("r", LORA_RANK), lora.get("target_modules") or default, bool(lora.get("lora_dropout")))


def _needs_reference(model: Mapping[str, Any]) -> bool:
    return any(OBJECTIVES.get(name) for name in model.get("objectives") or ())


def largest_batches(settings: Mapping[str, Any], shape: Shape) -> tuple[Batch, Batch]:
    """The largest micro-batches that a config allows: full of tiles, and of text alone.

    A sample may have `max_length` tokens and is taken to have one image, of `max_tiles` and a thumbnail; a pack may
    have `max_tokens` and `max_tiles` in all. Whatever is no image token is taken to be supervised.

    Raises:
        ConfigError: The config has no data loader, or its data no `max_length`.
    """
    loader = settings.get("train_dataloader") or {}
    data, packs = loader.get("dataset") or {}, loader.get("batch_sampler") or {}
    if "batch_size" not in loader or "max_length" not in data:
        raise ConfigError("train_dataloader: the plan needs batch_size and dataset.max_length; add them to the config")
    tokens, tiles = (loader["batch_size"] * each for each in (data["max_length"], _tiles_of_sample(data, shape)))
    if "max_tokens" in packs:
        tokens = packs["max_tokens"]
        tiles = min(packs.get("max_tiles") or tokens, tokens // shape.tokens_per_tile)
    return Batch(tokens, tiles, tokens - tiles * shape.tokens_per_tile), Batch(tokens, 0, tokens)


def _tiles_of_sample(data: Mapping[str, Any], shape: Shape) -> int:
    limit = data.get("max_tiles") or 1
    check_tiles(1, limit)
    return min(limit + (limit > 1), data["max_length"] // shape.tokens_per_tile)


@dataclass(frozen=True)
class Lengths:
    """What a run reads."""

    samples: int | None  # of an epoch; None where nobody has counted them
    mean: Batch  # a sample of average length, as an upper bound where lengths aren't measured
    batches: tuple[Batch, ...]  # the largest micro-batches
    source: str  # where the numbers are from, for reports
    is_measured: bool = False  # whether they are those of the records


def lengths_of(settings: Mapping[str, Any], shape: Shape, samples: int | None = None) -> Lengths:
    """Measured lengths where the cache of a dataset has them, else what the config allows.

    Other arguments are as of `job_of`; ``samples`` are those of an epoch, where they are known otherwise.
    """
    batches, loader = largest_batches(settings, shape), settings["train_dataloader"]
    data, paths = loader["dataset"], loader["dataset"].get("data_paths") or ()
    paths = [paths] if isinstance(paths, str) else paths
    measured = _measured(data, paths, pairs="objectives" in settings["model"])
    if measured is not None:
        mean, number = Batch(*(int(column.mean()) for column in measured)), len(measured[0])
        if not value_at(loader, "batch_sampler.max_tokens"):
            batches = (Batch(*(int(column[: loader["batch_size"]].sum()) for column in measured)),)
        means = f"{mean.tokens:,} tokens and {measured[1].mean():.1f} tiles on average"
        return Lengths(number, mean, batches, f"lengths measured: {number:,} samples of {means}", is_measured=True)
    tiles = _tiles_of_sample(data, shape)
    text = min(TEXT_TOKENS, data["max_length"] - tiles * shape.tokens_per_tile)
    known = sum(NUM_SAMPLES[path] for path in paths) if paths and NUM_SAMPLES.keys() >= set(paths) else None
    source = f"lengths not measured: every sample taken to have {tiles} tiles and {text} tokens of text"
    return Lengths(samples or known, Batch(tiles * shape.tokens_per_tile + text, tiles, text), batches, source)


def _measured(data: Mapping[str, Any], paths: Sequence[str], pairs: bool) -> list[Any] | None:
    """Tokens, tiles and supervised tokens of the samples, each falling, from the cache of a run or `check_data.py`."""
    if not paths or not all(map(names_data, paths)) or not Path(data.get("base", ""), "config.json").is_file():
        return None
    import numpy as np

    from ..datasets import MultimodalDataset, PreferenceDataset
    from ..datasets.plan.budget import DROPPED
    from ..errors import DataError, SourceError

    kind = PreferenceDataset if pairs else MultimodalDataset
    try:
        dataset = kind(**{key: value for key, value in data.items() if key != "type"})
    except (DataError, SourceError):
        if not any(map(is_url, paths)):  # planned also where the store isn't reached
            raise
        return None
    if not dataset.is_measured():
        return None
    tokens, tiles, fates = dataset.layout()
    supervised = np.concatenate([dataset.lengths(n).supervised[pick] for n, pick in enumerate(dataset.picks)])
    columns = [column[fates < DROPPED].astype(np.int64) for column in (tokens, tiles, supervised)]
    return [np.sort(column)[::-1] for column in columns] if len(columns[0]) else None


def count_records(data: Mapping[str, Any]) -> int | None:
    """Records of an epoch of a config's data; None where a file isn't there, or can't be read as it is."""
    from ..datasets.meta_file import list_files
    from ..datasets.records.opening import open_records
    from ..errors import DataError, SourceError

    columns = [data.get(name) for name in ("data_paths", "image_folders", "repeat_times", "dataset_settings")]
    try:
        return sum(
            round(len(open_records(entry.path, data.get("storage_options"))) * (entry.repeat_times or 1))
            for entry in list_files(*columns)
        )
    except (DataError, SourceError):  # told by the check, with the line
        return None


@dataclass(frozen=True)
class RunPlan:
    """A planned run."""

    base: str  # as the config names it
    job: Job
    strategy: Strategy
    lengths: Lengths
    memory: Plan  # of a rank
    work: Work  # of an average sample
    samples_per_step: int  # of all ranks and micro-batches
    steps: int | None  # optimizer steps; None where nobody has counted the samples
    operations: float | None  # of the whole run, a reference that is computed before it among them

    def seconds(self, teraflops: float, utilization: float) -> float | None:
        """Seconds that the run takes, None where nobody has counted the samples; recomputation counts as work.

        Args:
            teraflops: Peak of one of its GPUs, 10**12 operations a second.
            utilization: Share of the peak that it reaches.
        """
        return self.operations and self.operations / (self.strategy.gpus * teraflops * 1e12 * utilization)


def plan_config(settings: Mapping[str, Any], strategy: Strategy, samples: int | None = None) -> RunPlan:
    """The plan of a config.

    Args:
        settings: the config as a dict of its keys; types may be lazy.
        strategy: how it is spread.
        samples: of an epoch, where lengths aren't measured.

    Raises:
        ConfigError: A config that can't be planned.
    """
    base = (settings.get("model") or {}).get("base")
    if not isinstance(base, str):
        raise ConfigError("model.base names no model directory; plans are made for configs of VisionLanguageModel")
    shape = model_of(base)
    lengths = lengths_of(settings, shape, samples)
    job = job_of(settings, shape, lengths.batches)
    if problem := obstacle(job, strategy):
        raise ConfigError(problem)
    loader, train = settings["train_dataloader"], settings.get("train_cfg") or {}
    packs = value_at(loader, "batch_sampler.max_tokens")
    rows = packs / lengths.mean.tokens if packs else loader["batch_size"]
    per_step = max(int(rows * job.accumulation * strategy.gpus / job.sharing), 1)
    limits = [train["max_iters"]] if train.get("max_iters") else []
    if lengths.samples is not None and train.get("max_epochs"):
        limits.append(math.ceil(lengths.samples * train["max_epochs"] / per_step))
    steps, work = min(limits, default=None), work_of(under(job, strategy), lengths.mean)
    # A precomputed reference reads each sample once before the run.
    before = (lengths.samples or 0) * work.forward * (_needs_reference(settings["model"]) and not job.reference)
    operations = steps and steps * per_step * work.total + before
    return RunPlan(base, job, strategy, lengths, plan_memory(job, strategy), work, per_step, steps, operations)


def advise(
    settings: Mapping[str, Any], plan: Plan, available: int, replan: Callable[[Sequence[str]], Plan]
) -> list[str]:
    """Sentences about single changes, those that save memory where it is short, else those that make a run faster.

    Args:
        settings: values of the config by their short names, those that it has.
        plan: with these values.
        available: bytes of a GPU.
        replan: the plan with other values, given as `KEY=VALUE` pairs; each change is planned before it is told.
    """
    lines = []
    for change in _changes(settings, saves=plan.total > 0.9 * available):
        pairs = [f"{name}={value}" for name, value in change.items()]
        other = replan(pairs).total
        result = f"{gib(other)} of {gib(available)} GiB"
        if plan.total < other <= available:
            lines.append(f"{' '.join(pairs)} fits too: {result}")
        elif plan.total - other > 0.05 * GIB:
            enough = "" if other <= available else ", which is not enough"
            lines.append(f"{' '.join(pairs)} saves {gib(plan.total - other)} GiB: {result}{enough}")
    return lines


def _changes(settings: Mapping[str, Any], saves: bool) -> Iterator[dict[str, Any]]:
    """Changes that need less memory, the cheapest for the result first; or that need more and make a run faster.

    Some may change nothing.
    """
    batch, accumulation = settings.get("batch_size") or 1, settings.get("accumulative_counts") or 1
    rows = "pack_tokens" not in settings
    if not saves:
        yield {"sequence_parallel": 1}  # where one GPU holds a row, nothing need be exchanged
        yield {"gradient_checkpointing": False}
        if rows and accumulation % 2 == 0:
            yield {"batch_size": 2 * batch, "accumulative_counts": accumulation // 2}
        return
    recomputes = settings.get("gradient_checkpointing", True)
    yield {"offload_activations": True} if recomputes else {"gradient_checkpointing": True}
    for smaller in sorted({batch // 2, 1} - {0}, reverse=True) if rows else ():
        yield {"batch_size": smaller, "accumulative_counts": batch // smaller * accumulation}
    halved = ("max_tiles", "max_length") if rows else ("pack_tiles", "pack_tokens")
    if (settings.get(halved[0]) or 1) > 1:
        yield {name: settings[name] // 2 for name in halved}


def gib(amount: float) -> str:
    """Bytes as GiB."""
    return f"{amount / GIB:.1f}"


def duration(seconds: float) -> str:
    """Seconds as hours, or minutes below one hour."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def sentence(memory: Plan, plan: RunPlan, gpu: GPU) -> str:
    """Memory, steps and time of a run on one GPU, in a line; ``memory`` is that of its largest batch."""
    said = f"{gpu.name}: {gib(memory.total)} of {gpu.memory:g} GiB planned"
    if plan.steps is None:
        return f"{said}; no time planned, since nobody has counted the records"
    said += f"; {plan.steps:,} steps of {plan.samples_per_step} samples"
    if seconds := gpu.teraflops and plan.seconds(gpu.teraflops, UTILIZATION):
        most = "" if plan.lengths.is_measured else "at most "
        said += f", {most}{duration(seconds)} planned at {UTILIZATION:.0%} of {gpu.teraflops:g} TFLOPS"
    return f"{said}; not run yet"


def verdict(plan: Plan, available: int) -> str:
    """`fits`, `tight` (less than a tenth is free) or `does not fit`."""
    return ("tight" if plan.total > 0.9 * available else "fits") if plan.fits(available) else "does not fit"


def memory_table(plan: Plan, strategy: Strategy, device: str, available: int) -> str:
    """Part by part, the sum, what is free, and the verdict, in GiB.

    Args:
        plan: of a rank.
        strategy: that it is planned under.
        device: name of the card.
        available: its memory in bytes.
    """
    rows = {part: amount for part, amount in plan.parts.items() if gib(amount) != "0.0"}
    rows |= {f"sum, most at: {plan.moment}": plan.total, "in the CPU's memory": plan.host}
    rows |= {f"free of {gib(available)}: {verdict(plan, available)}": available - plan.total}
    lines = [f"{part:36}{gib(amount):>8}" for part, amount in rows.items()]
    return "\n".join([f"Memory of one rank, {strategy.name} on {strategy.gpus} x {device}, GiB", *lines, ""])


def strategies_table(plans: Iterable[tuple[Strategy, Plan]], available: int) -> str:
    """All strategies with their plans, one row each, for GPUs with ``available`` bytes."""
    lines = [
        f"{strategy.name:26}{gib(plan.total):>10}{gib(plan.host):>10}  {verdict(plan, available)}"
        for strategy, plan in plans
    ]
    return "\n".join(["All strategies              GPU, GiB  CPU, GiB", *lines, ""])
