"""A run on one GPU: tiles, lengths, optimizer and batch that its memory holds, and what follows from the records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..processes import num_cores
from ..settings import SETTINGS, ConfigError, labels_of, leaves, read_config, value_at
from .hardware import GPU
from .job import launched, plain
from .memory import GIB, Plan, plan_memory
from .plan import RunPlan, count_records, gib, job_of, model_of, plan_config
from .published import BASES, known_base

SHARE = 0.9  # of the memory that a plan may fill: it is computed, not measured
LADDER = ((12, 8192), (12, 4096), (6, 4096), (6, 2560))  # tiles and tokens of a sample; the first that fits is taken
LARGEST_BATCH = 8
FEW_RECORDS, EPOCHS = 5000, 3  # so many epochs below so many records
TIMES = {"save_steps": 5, "val_interval": 5}  # in a short run; a long one keeps the recipe's intervals
_BATCH = SETTINGS["batch_size"].key


@dataclass(frozen=True)
class OneGPU:
    """A run that one GPU holds."""

    changes: Mapping[str, Any]  # keys of the runner with their values, those that were given among them
    memory: Plan  # of the largest batch that the settings allow
    plan: RunPlan  # with measured lengths where the cache has them


def choose(recipe: str, given: Mapping[str, Any], gpu: GPU) -> OneGPU:
    """Plans a recipe for one GPU, without DeepSpeed.

    The first of `LADDER` that fits `SHARE` of the memory with one sample is taken, then the largest batch; accumulation
    keeps the recipe's samples per step. A model that trains whole takes 8-bit AdamW before it loses resolution.

    Args:
        recipe: stem of a config of configs/.
        given: keys of the runner with their values, ``model.base`` among them; the others are chosen.
        gpu: memory, speed and dtype.

    Raises:
        ConfigError: Nothing fits; names the nearest recipe or base that does.
    """
    settings = _read(recipe, given)
    chosen, memory = _largest(recipe, given, gpu)
    if not _fits(memory, gpu):
        raise ConfigError(_refusal(recipe, settings["model"], memory, gpu))
    records = count_records(settings["train_dataloader"]["dataset"])
    if records and records < FEW_RECORDS and not settings["model"].get("objectives"):
        chosen |= _keys(max_epochs=EPOCHS)
    plan = plan_config(_read(recipe, {**chosen, **given}), plain(1, gpu.is_cpu), records)
    for key, times in _keys(**TIMES).items():
        if plan.steps and value_at(settings, key):
            chosen[key] = min(-(-plan.steps // times), value_at(settings, key))
    return OneGPU({**given, **chosen, **given}, memory, plan)


def _read(recipe: str, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    return read_config(recipe, changes)._to_lazy_dict()


def _keys(**values: Any) -> dict[str, Any]:
    return {SETTINGS[name].key: value for name, value in values.items()}


def _fits(memory: Plan, gpu: GPU) -> bool:
    return memory.fits(SHARE * gpu.memory * GIB)


def _largest(recipe: str, given: Mapping[str, Any], gpu: GPU) -> tuple[dict[str, Any], Plan]:
    """Keys that aren't given with values that fit, and the memory of a step; the smallest where nothing fits."""
    leaf, shape = _read(recipe, {}), model_of(_read(recipe, given)["model"]["base"])
    loader, processes = leaf["train_dataloader"], launched(labels_of(leaves()[recipe])["launch"])[0]
    step = loader["batch_size"] * leaf["optim_wrapper"]["accumulative_counts"] * processes
    most = 1 if "batch_sampler" in loader else min(max(LARGEST_BATCH, loader["batch_size"]), step)
    least, most = (given.get(_BATCH, each) for each in (1, most))

    def planned(values: Mapping[str, Any], size: int) -> tuple[dict[str, Any], Plan]:
        keys = _keys(**values, batch_size=size, accumulative_counts=max(step // size, 1))
        keys = {key: value for key, value in keys.items() if key not in given}
        return keys, plan_memory(job_of(_read(recipe, {**keys, **given}), shape), plain(1, gpu.is_cpu))

    for values in _resolutions(leaf, gpu):
        found, size = planned(values, least), 2 * least
        while size <= most and _fits((larger := planned(values, size))[1], gpu):
            found, size = larger, 2 * size
        if _fits(found[1], gpu):
            break
    return found


def _resolutions(leaf: Mapping[str, Any], gpu: GPU) -> Iterator[dict[str, Any]]:
    """The recipe's tiles, tokens and optimizer, then what needs less memory; with what the machine asks for."""
    data, packs = leaf["train_dataloader"]["dataset"], leaf["train_dataloader"].get("batch_sampler")
    machine = {"num_workers": max(min(8, num_cores() - 1), 1)}
    machine |= {} if gpu.dtype == "bfloat16" else {"dtype": gpu.dtype}
    optimizers = [{}, {"optimizer": "AdamW8bit"}][: 2 - leaf["model"].get("freeze_llm", True)]
    own = data["max_tiles"], data["max_length"]
    for tiles, length in (own, *(each for each in LADDER if each != own and each[0] <= own[0] and each[1] <= own[1])):
        packed = {"pack_tokens": length, "pack_tiles": packs["max_tiles"] * length // own[1]} if packs else {}
        yield from ({"max_tiles": tiles, "max_length": length, **packed, **each, **machine} for each in optimizers)


def _refusal(recipe: str, model: Mapping[str, Any], memory: Plan, gpu: GPU) -> str:
    """That nothing fits, and the nearest that does: the same base with less that trains, then smaller ones."""
    base, lighter = model["base"], ["lora", "qlora"] * (not model.get("freeze_llm", True))
    lighter = ["qlora"] if model.get("llm_lora") and not model.get("llm_quantization") else lighter
    recipes = [recipe, *(f"finetune_{'dpo_' * bool(model.get('objectives'))}{each}" for each in lighter)]
    said = f"{recipe} with {base} takes {gib(memory.total)} GiB at least, and a plan may fill {SHARE:.0%} of "
    said += f"{gpu.memory:g} GiB ({gpu.name})"
    for start, each in itertools.product([base, *_smaller(base)], recipes):
        needed = _largest(each, _keys(base=start), gpu)[1]
        if _fits(needed, gpu):
            same = "the same without the values of --set" if (each, start) == (recipe, base) else f"{each} with {start}"
            return f"{said}; the nearest that fits: {same} ({gib(needed.total)} GiB)"
    return f"{said}; nothing of this release fits"


def _smaller(base: str) -> list[str]:
    """Smaller released models of the same release, the largest first; `BASES` has them in the order of their sizes."""
    row = known_base(base)
    release = [name for name in BASES if row and BASES[name].hub and name.split("-")[0] == row.name.split("-")[0]]
    return [f"models/{name}" for name in reversed(release[: release.index(row.name)])] if release else []
