"""What a config will need: reads model, data and batch from it and hands them to `planning`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data_names import is_url, names_data
from ..families import encoder_family, llm_family
from ..hub.constants import PROJECTOR_TYPES
from ..ranges import OBJECTIVES
from ..settings import ConfigError, read_deepspeed
from .activations import kept_bytes
from .job import MOMENTS, Adapters, Batch, Job, Strategy
from .memory import Plan, plan_memory, under
from .published import ENCODERS, LLMS, NUM_SAMPLES, Base, known_base
from .shapes import Shape, shape_of
from .strategies import from_deepspeed, obstacle, plain
from .work import Work, seconds, work_of

LORA_RANK = 8  # PEFT's default
BLOCK = 256  # weights per scale of an 8-bit moment
TEXT_TOKENS = 512  # of a sample, where nobody has measured


@dataclass(frozen=True)
class Model:
    """A model's shape, and the fields of its two configs.

    Attributes:
        name: the directory, or the published model that stands for it.
        shape: of it.
        vision, llm: fields of the parts' configs.
    """

    name: str
    shape: Shape
    vision: Mapping[str, Any]
    llm: Mapping[str, Any]


def model_of(path: str) -> Model:
    """The model of a config's `base`: the directory if it is there, else the published model that it stands for.

    Raises:
        ConfigError: No such directory, and no published model of that name.
    """
    if Path(path, "config.json").is_file():
        return _model_of_directory(path)
    base = known_base(path)
    if base is None:
        raise ConfigError(
            f"model directory {path!r} isn't there, and no shipped config says what is in it; build it with "
            "tools/build_base_model.py, or give the directory of a similar model with --set base=..."
        )
    return model_of_base(base)


def model_of_base(base: Base) -> Model:
    """The model of a row of `BASES`, at its true size."""
    vision, plain = ENCODERS[base.encoder].config, base.projector_type == "mlp"
    llm = {**LLMS[base.llm].config, "vocab_size": base.vocab_size}
    shape = shape_of(
        vision,
        llm,
        tile_size=vision["image_size"],
        downsample_ratio=1.0 if plain else 0.5,
        projector_type=base.projector_type or PROJECTOR_TYPES[0],
        select_layer=base.select_layer,
    )
    return Model(base.name, shape, vision, llm)


def _model_of_directory(path: str) -> Model:
    from ..datasets.base import read_base  # imports transformers

    config = read_base(path)
    vision, llm = config.vision_config.to_dict(), config.llm_config.to_dict()
    shape = shape_of(
        vision,
        llm,
        tile_size=config.force_image_size or vision["image_size"],
        downsample_ratio=config.downsample_ratio,
        projector_type=getattr(config, "projector_type", PROJECTOR_TYPES[0]),
        select_layer=config.select_layer,
    )
    return Model(path, shape, vision, llm)


def job_of(settings: Mapping[str, Any], model: Model, batches: tuple[Batch, ...] | None = None) -> Job:
    """The job of a config.

    Args:
        settings: the config as a dict of its keys; types may be lazy.
        model: what it trains, see `model_of`.
        batches: measured micro-batches; None takes the largest that the config allows.

    Raises:
        ConfigError: A config of another model class, or a key is missing.
    """
    ours = settings.get("model") or {}
    if "freeze_llm" not in ours and "base" not in ours:
        raise ConfigError("model: only configs of VisionLanguageModel (with base and freeze_llm) can be planned")
    frozen = {"visual_encoder": True, "projector": False, "llm": True}
    families = {"visual_encoder": encoder_family(model.vision), "llm": llm_family(model.llm)}
    adapters = {part: _adapters(ours[f"{part}_lora"], families[part]) for part in families if ours.get(f"{part}_lora")}
    packed = {"visual_encoder": families["visual_encoder"].lora_targets, "llm": families["llm"].packed_linears}
    wrapper = settings.get("optim_wrapper") or {}
    job = Job(
        shape=model.shape,
        whole=frozenset(part for part, default in frozen.items() if not ours.get(f"freeze_{part}", default)),
        batches=batches or largest_batches(settings, model.shape),
        adapters=adapters,
        quantized={part: names for part, names in packed.items() if ours.get(f"{part}_quantization")},
        last_layers=ours.get("visual_encoder_last_layers") or 0,
        recompute=ours.get("gradient_checkpointing", True),
        encoder_group=None
        if ours.get("visual_encoder_checkpointing") is None
        else int(ours["visual_encoder_checkpointing"]),
        recompute_projector=ours.get("projector_checkpointing", False),
        half=ours.get("dtype", "auto") != "float32",
        accumulation=wrapper.get("accumulative_counts", 1),
        moments=moment_bytes(wrapper.get("optimizer") or {}),
        pairs=bool(ours.get("objectives")),
        trains_rows=ours.get("train_new_tokens", False),
        reference=_needs_reference(ours) and not ours.get("precomputed_reference"),
    )
    if not job.trained:
        raise ConfigError("model: nothing would train: every part is frozen and no LoRA is set")
    return job


def _needs_reference(model: Mapping[str, Any]) -> bool:
    return any(OBJECTIVES.get(name) for name in model.get("objectives") or ())


def moment_bytes(optimizer: Mapping[str, Any]) -> float:
    """Bytes per trained weight of an optimizer's two moments: float32, or 8 bits with a scale per block."""
    is_8bit = str(optimizer.get("type", "")).endswith("8bit")
    return MOMENTS / 4 + MOMENTS / BLOCK if is_8bit else MOMENTS


def _adapters(settings: Mapping[str, Any], family) -> Adapters:
    targets = settings.get("target_modules") or family.lora_targets
    return Adapters(
        settings.get("r", LORA_RANK), targets, bool(settings.get("lora_dropout")), settings.get("use_dora", False)
    )


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
        tokens, tiles = packs["max_tokens"], packs.get("max_tiles") or packs["max_tokens"] // shape.tokens_per_tile
    else:
        rows, limit = loader["batch_size"], data.get("max_tiles") or 1
        tokens = rows * data["max_length"]
        tiles = rows * min(limit + (limit > 1), data["max_length"] // shape.tokens_per_tile)
    tiles = min(tiles, tokens // shape.tokens_per_tile)
    return Batch(tokens, tiles, tokens - tiles * shape.tokens_per_tile), Batch(tokens, 0, tokens)


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


def lengths_of(settings: Mapping[str, Any], model: Model, samples: int | None = None) -> Lengths:
    """Measured lengths where the cache of a dataset has them, else what the config allows.

    Args:
        settings: the config as a dict of its keys.
        model: see `model_of`.
        samples: of an epoch, where it is known otherwise.
    """
    measured = _measured_lengths(settings, model)
    if measured is not None:
        return measured
    batches = largest_batches(settings, model.shape)
    loader = settings["train_dataloader"]
    length, limit = loader["dataset"]["max_length"], loader["dataset"].get("max_tiles") or 1
    tiles = min(limit + (limit > 1), length // model.shape.tokens_per_tile)
    text = min(TEXT_TOKENS, length - tiles * model.shape.tokens_per_tile)
    mean = Batch(tiles * model.shape.tokens_per_tile + text, tiles, text)
    paths = loader["dataset"].get("data_paths") or ()
    counts = [NUM_SAMPLES.get(path) for path in ([paths] if isinstance(paths, str) else paths)]
    known = sum(counts) if counts and None not in counts else None
    source = f"lengths not measured: every sample taken to have {tiles} tiles and {text} tokens of text"
    return Lengths(samples or known, mean, batches, source)


def _measured_lengths(settings: Mapping[str, Any], model: Model) -> Lengths | None:
    """From the cache that a run or `check_data.py` has left; None where there is none."""
    loader = settings.get("train_dataloader") or {}
    data = {key: value for key, value in (loader.get("dataset") or {}).items() if key != "type"}
    paths = data.get("data_paths") or ()
    there = [names_data(path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not there or not all(there) or not Path(data.get("base", ""), "config.json").is_file():
        return None
    import numpy as np

    from ..datasets import MultimodalDataset, PreferenceDataset
    from ..datasets.errors import DataError, SourceError
    from ..datasets.plan.lengths import DROPPED

    try:
        dataset = (PreferenceDataset if "objectives" in settings.get("model", {}) else MultimodalDataset)(**data)
    except (DataError, SourceError):
        if any(map(is_url, [paths] if isinstance(paths, str) else paths)):  # planned also where the store isn't reached
            return None
        raise
    if not dataset.is_measured():
        return None
    tokens, tiles, fates = dataset.layout()
    rows = np.flatnonzero(fates < DROPPED)
    supervised = np.concatenate([dataset.lengths(n).supervised[pick] for n, pick in enumerate(dataset.picks)])
    columns = [np.sort(column[rows])[::-1].astype(np.int64) for column in (tokens, tiles, supervised)]
    if not len(rows):
        return None
    mean = Batch(*(int(column.mean()) for column in columns))
    if "max_tokens" in (loader.get("batch_sampler") or {}):
        batches = largest_batches(settings, model.shape)
    else:
        batches = (Batch(*(int(column[: loader["batch_size"]].sum()) for column in columns)),)
    per_sample = f"{mean.tokens:,} tokens and {columns[1].mean():.1f} tiles"
    source = f"lengths measured: {len(rows):,} samples of {per_sample} on average"
    return Lengths(len(rows), mean, batches, source)


@dataclass(frozen=True)
class RunPlan:
    """A planned run.

    Attributes:
        model, job, strategy, lengths: what was planned.
        memory: of a rank.
        work: operations of an average sample.
        samples_per_step: of all ranks and micro-batches.
        steps: optimizer steps; None where nobody has counted the samples.
        precomputes: the reference reads each sample of an epoch once, before the first step.
    """

    model: Model
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

    @property
    def kept(self) -> dict[bool, int]:
        """Bytes of activations when the loss is computed, by `recompute`."""
        job = under(self.job, self.strategy)
        return {
            recompute: max(
                kept_bytes(replace(job, recompute=recompute, encoder_group=None), batch) for batch in job.batches
            )
            for recompute in (False, True)
        }

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
    return plan_run(settings, model_of(base), strategy, samples)


def plan_run(
    settings: Mapping[str, Any],
    model: Model,
    strategy: Strategy,
    samples: int | None = None,
    lengths: Lengths | None = None,
) -> RunPlan:
    """As `plan_config`, for a model that is known, and lengths where they are."""
    lengths = lengths or lengths_of(settings, model, samples)
    job = job_of(settings, model, lengths.batches)
    if problem := obstacle(job, strategy):
        raise ConfigError(problem)
    packs = (settings["train_dataloader"].get("batch_sampler") or {}).get("max_tokens")
    rows = packs / lengths.mean.tokens if packs else settings["train_dataloader"]["batch_size"]
    per_step = max(int(rows * job.accumulation * strategy.gpus), 1)
    return RunPlan(
        model,
        job,
        strategy,
        lengths,
        plan_memory(job, strategy),
        work_of(under(job, strategy), lengths.mean),
        per_step,
        _steps(settings.get("train_cfg") or {}, lengths.samples, per_step),
        _needs_reference(settings["model"]) and not job.reference,
    )


def _steps(train: Mapping[str, Any], samples: int | None, per_step: int) -> int | None:
    limits = [train.get("max_iters")]
    if samples is not None and train.get("max_epochs"):
        limits.append(math.ceil(samples * train["max_epochs"] / per_step))
    limits = [limit for limit in limits if limit is not None]
    return min(limits, default=None)


def strategy_of(deepspeed: str | None, processes: int) -> Strategy:
    """Of a name for ``--deepspeed``, or DDP for None."""
    return from_deepspeed(deepspeed, read_deepspeed(deepspeed), processes) if deepspeed else plain(processes)
