"""What a config will need: reads model, data and batch from it, plans them, and says which settings to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data_names import is_url, names_data
from ..families import PARTS, families_of
from ..ranges import OBJECTIVES, check_tiles
from ..settings import ConfigError
from .activations import kept_bytes
from .job import MOMENTS, Adapters, Batch, Job, Strategy
from .memory import GIB, Plan, plan_memory, under
from .published import NUM_SAMPLES, known_base
from .shapes import Shape, shape_of
from .strategies import obstacle
from .work import Work, seconds, work_of

LORA_RANK = 8  # PEFT's default
BLOCK = 256  # weights per scale of an 8-bit moment
TEXT_TOKENS = 512  # of a sample, where nobody has measured


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
        raise ConfigError(
            f"model directory {path!r} isn't there, and no shipped config says what is in it; build it with "
            "tools/build_base_model.py, or give the directory of a similar model with --set base=..."
        )
    return shape_of(base.config)


def job_of(settings: Mapping[str, Any], shape: Shape, batches: tuple[Batch, ...] | None = None) -> Job:
    """The job of a config.

    Args:
        settings: the config as a dict of its keys; types may be lazy.
        shape: what it trains, see `model_of`.
        batches: measured micro-batches; None takes the largest that the config allows.

    Raises:
        ConfigError: A config of another model class, or a key is missing.
    """
    ours, wrapper = settings.get("model") or {}, settings.get("optim_wrapper") or {}
    if "freeze_llm" not in ours and "base" not in ours:
        raise ConfigError("model: only configs of VisionLanguageModel (with base and freeze_llm) can be planned")
    kinds = {"vision_config": {"model_type": shape.encoder.kind}, "llm_config": {"model_type": shape.llm.kind}}
    families = families_of(kinds)
    recompute, of_encoder = ours.get("gradient_checkpointing", True), ours.get("visual_encoder_checkpointing")
    job = Job(
        shape=shape,
        whole=frozenset(part for part, row in PARTS.items() if not ours.get(f"freeze_{part}", row.is_frozen)),
        batches=batches or largest_batches(settings, shape),
        adapters={
            part: _adapters(lora, row.lora_targets)
            for part, row in families.items()
            if (lora := ours.get(f"{part}_lora"))
        },
        quantized={part: row.packed_linears for part, row in families.items() if ours.get(f"{part}_quantization")},
        last_layers=ours.get("visual_encoder_last_layers") or 0,
        train_head=ours.get("train_head", False),
        recompute=recompute,
        recompute_encoder=recompute if of_encoder is None else bool(of_encoder),
        half=ours.get("dtype", "auto") != "float32",
        accumulation=wrapper.get("accumulative_counts", 1),
        moments=moment_bytes(wrapper.get("optimizer") or {}),
        pairs=bool(ours.get("objectives")),
        reference=_needs_reference(ours) and not ours.get("precomputed_reference"),
    )
    if not job.trained:
        raise ConfigError("model: nothing would train: every part is frozen and no LoRA is set")
    return job


def _adapters(settings: Mapping[str, Any], default: Sequence[str]) -> Adapters:
    targets, dropout = settings.get("target_modules") or default, bool(settings.get("lora_dropout"))
    return Adapters(settings.get("r", LORA_RANK), targets, dropout, settings.get("use_dora", False))


def _needs_reference(model: Mapping[str, Any]) -> bool:
    return any(OBJECTIVES.get(name) for name in model.get("objectives") or ())


def moment_bytes(optimizer: Mapping[str, Any]) -> float:
    """Bytes per trained weight of an optimizer's two moments: float32, or 8 bits with a scale per block."""
    is_8bit = "8bit" in str(optimizer.get("type", ""))
    return MOMENTS / 4 + MOMENTS / BLOCK if is_8bit else MOMENTS


def largest_batches(settings: Mapping[str, Any], shape: Shape) -> tuple[Batch, Batch]:
    """The largest micro-batches that a config allows: full of tiles, and of text alone.

    A sample may have `max_length` tokens and is taken to have one image, of `max_tiles` and a thumbnail. A pack may
    have `max_tokens` and `max_tiles` in all. Whatever is no image token is taken to be supervised.

    Raises:
        ConfigError: The config has no data loader, or its data no `max_length`.
    """
    loader = settings.get("train_dataloader") or {}
    data, packs = loader.get("dataset") or {}, loader.get("batch_sampler") or {}
    if "batch_size" not in loader or "max_length" not in data:
        raise ConfigError("train_dataloader: the plan needs batch_size and dataset.max_length; add them to the config")
    if "max_tokens" in packs:
        tokens, tiles = packs["max_tokens"], packs.get("max_tiles") or packs["max_tokens"]
    else:
        rows = loader["batch_size"]
        tokens, tiles = rows * data["max_length"], rows * _tiles_of_sample(data, shape)
    tiles = min(tiles, tokens // shape.tokens_per_tile)
    return Batch(tokens, tiles, tokens - tiles * shape.tokens_per_tile), Batch(tokens, 0, tokens)


def _tiles_of_sample(data: Mapping[str, Any], shape: Shape) -> int:
    limit = data.get("max_tiles") or 1
    check_tiles(data.get("min_tiles") or 1, limit)
    return min(limit + (limit > 1), data["max_length"] // shape.tokens_per_tile)


@dataclass(frozen=True)
class Lengths:
    """What a run reads.

    Attributes:
        samples: of an epoch; None where nobody has counted them.
        mean: a sample of average length, as an upper bound where lengths aren't measured.
        batches: the largest micro-batches.
        source: where the numbers are from, for reports.
    """

    samples: int | None
    mean: Batch
    batches: tuple[Batch, ...]
    source: str


def lengths_of(settings: Mapping[str, Any], shape: Shape, samples: int | None = None) -> Lengths:
    """Measured lengths where the cache of a dataset has them, else what the config allows.

    Args:
        settings: the config as a dict of its keys.
        shape: of the model.
        samples: of an epoch, where it is known otherwise.
    """
    batches, loader = largest_batches(settings, shape), settings["train_dataloader"]
    data, packs = loader["dataset"], "max_tokens" in (loader.get("batch_sampler") or {})
    paths = data.get("data_paths") or ()
    paths = [paths] if isinstance(paths, str) else paths
    measured = _measured(data, paths, pairs="objectives" in (settings.get("model") or {}))
    if measured is not None:
        mean = Batch(*(int(column.mean()) for column in measured))
        longest = Batch(*(int(column[: loader["batch_size"]].sum()) for column in measured))
        number, tiles = len(measured[0]), measured[1].mean()
        source = f"lengths measured: {number:,} samples of {mean.tokens:,} tokens and {tiles:.1f} tiles on average"
        return Lengths(number, mean, batches if packs else (longest,), source)
    tiles = _tiles_of_sample(data, shape)
    text = min(TEXT_TOKENS, data["max_length"] - tiles * shape.tokens_per_tile)
    counts = [NUM_SAMPLES.get(path) for path in paths]
    known = sum(counts) if counts and None not in counts else None
    source = f"lengths not measured: every sample taken to have {tiles} tiles and {text} tokens of text"
    return Lengths(samples or known, Batch(tiles * shape.tokens_per_tile + text, tiles, text), batches, source)


def _measured(data: Mapping[str, Any], paths: Sequence[str], pairs: bool) -> list[Any] | None:
    """Tokens, tiles and supervised tokens of the samples, each falling, from the cache of a run or `check_data.py`."""
    if not paths or not all(map(names_data, paths)) or not Path(data.get("base", ""), "config.json").is_file():
        return None
    import numpy as np

    from ..datasets import MultimodalDataset, PreferenceDataset
    from ..datasets.errors import DataError, SourceError
    from ..datasets.plan.lengths import DROPPED

    kind = PreferenceDataset if pairs else MultimodalDataset
    try:
        dataset = kind(**{key: value for key, value in data.items() if key != "type"})
    except (DataError, SourceError):
        if any(map(is_url, paths)):  # planned also where the store isn't reached
            return None
        raise
    if not dataset.is_measured():
        return None
    tokens, tiles, fates = dataset.layout()
    rows = np.flatnonzero(fates < DROPPED)
    supervised = np.concatenate([dataset.lengths(n).supervised[pick] for n, pick in enumerate(dataset.picks)])
    columns = [np.sort(column[rows])[::-1].astype(np.int64) for column in (tokens, tiles, supervised)]
    return columns if len(rows) else None


@dataclass(frozen=True)
class RunPlan:
    """A planned run.

    Attributes:
        model: the base.
        job, strategy, lengths: what was planned.
        memory: of a rank.
        work: operations of an average sample.
        samples_per_step: of all ranks and micro-batches.
        steps: optimizer steps; None where nobody has counted the samples.
        precomputes: the reference reads each sample of an epoch once, before the first step.
    """

    model: str
    job: Job
    strategy: Strategy
    lengths: Lengths
    memory: Plan
    work: Work
    samples_per_step: int
    steps: int | None
    precomputes: bool = False

    @property
    def samples(self) -> int | None:
        """That the run reads, repeated ones counted each time."""
        return None if self.steps is None else self.steps * self.samples_per_step

    def kept(self, recompute: bool) -> int:
        """Bytes of activations that a forward pass leaves, with or without recomputation."""
        job = replace(under(self.job, self.strategy), recompute=recompute, recompute_encoder=recompute)
        return max(kept_bytes(job, batch) for batch in job.batches)

    def seconds(self, teraflops: float, utilization: float) -> float | None:
        """Time of the run; None where nobody has counted the samples."""
        if self.steps is None:
            return None
        once = self.lengths.samples * self.work.forward if self.precomputes and self.lengths.samples else 0
        return seconds(self.samples * self.work.total + once, self.strategy.gpus, teraflops, utilization)

    def validation_seconds(self, samples: int, interval: int, teraflops: float, utilization: float) -> float | None:
        """Time of all validations, forward passes over samples as long as the training's on average."""
        if self.steps is None:
            return None
        forward = self.work.forward + self.work.reference
        return seconds(math.ceil(self.steps / interval) * samples * forward, self.strategy.gpus, teraflops, utilization)


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
    packs = (loader.get("batch_sampler") or {}).get("max_tokens")
    rows = packs / lengths.mean.tokens if packs else loader["batch_size"]
    per_step = max(int(rows * job.accumulation * strategy.gpus), 1)
    limits = [train["max_iters"]] if train.get("max_iters") else []
    if lengths.samples is not None and train.get("max_epochs"):
        limits.append(math.ceil(lengths.samples * train["max_epochs"] / per_step))
    return RunPlan(
        base if Path(base, "config.json").is_file() else known_base(base).name,
        job,
        strategy,
        lengths,
        plan_memory(job, strategy),
        work_of(under(job, strategy), lengths.mean),
        per_step,
        min(limits, default=None),
        _needs_reference(settings["model"]) and not job.reference,
    )


def advise(
    settings: Mapping[str, Any], plan: Plan, available: int, replan: Callable[[Sequence[str]], Plan]
) -> list[str]:
    """Sentences about single settings; each is planned again before it is made.

    Args:
        settings: values of the config by their short names, those that it has.
        plan: with these values.
        available: bytes of a GPU.
        replan: the plan with other values, given as `KEY=VALUE` pairs.
    """
    lines = []
    for pairs in _savings(settings) if plan.total > 0.9 * available else _luxuries(settings):
        other = replan(pairs)
        saved, result = plan.total - other.total, f"{other.total / GIB:.1f} of {available / GIB:.1f} GiB"
        if saved < 0 and other.total <= available:
            lines.append(f"{' '.join(pairs)} fits too: {result}")
        elif saved > 0.05 * GIB:
            enough = "" if other.total <= available else ", which is not enough"
            lines.append(f"{' '.join(pairs)} saves {saved / GIB:.1f} GiB: {result}{enough}")
    return lines


def _savings(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Changes that need less memory, the cheapest for the result first."""
    if settings.get("gradient_checkpointing") is False:
        yield ["gradient_checkpointing=True"]
    batch, accumulation = settings.get("batch_size") or 1, settings.get("accumulative_counts") or 1
    if "pack_tokens" in settings:
        yield [f"pack_tokens={settings['pack_tokens'] // 2}", f"pack_tiles={settings['pack_tiles'] // 2}"]
        return
    for smaller in sorted({batch // 2, 1} - {0, batch}, reverse=True):
        yield [f"batch_size={smaller}", f"accumulative_counts={batch // smaller * accumulation}"]
    if (settings.get("max_tiles") or 1) > 1:
        yield [f"max_tiles={settings['max_tiles'] // 2}", f"max_length={settings['max_length'] // 2}"]


def _luxuries(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Changes that need more memory and make a run faster."""
    if settings.get("gradient_checkpointing") is True:
        yield ["gradient_checkpointing=False"]
    batch, accumulation = settings.get("batch_size"), settings.get("accumulative_counts")
    if batch and accumulation and accumulation % 2 == 0 and "pack_tokens" not in settings:
        yield [f"batch_size={2 * batch}", f"accumulative_counts={accumulation // 2}"]
