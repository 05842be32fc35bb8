"""A config of one's own: a shipped one with another base and data, and if asked for, planned for one GPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.check.text import check_values
from ..files import absolute_path, names_data, names_images
from ..planning.published import other_rate
from ..settings import SETTINGS, ConfigError, find_config, labels_of, leaves, read_config, value_at
from .from_xtuner import check_out, derive, launch_line

FEW_STEPS = 30  # in which hardly anything is learned
PARTS = {"visual_encoder": "vision encoder", "projector": "projector", "llm": "LLM"}


def write_own(
    name: str,
    out: Path,
    words: Mapping[str, Any],
    *,
    base: str,
    data: Sequence[str],
    images: Sequence[str],
    val: Sequence[str] = (),
    val_images: Sequence[str] = (),
    gpu: str | None = None,
    force: bool = False,
) -> None:
    """Writes a config that takes in a shipped one, and prints how it is started.

    Args:
        name: Of the shipped config.
        out: The file.
        words: Further keys with their values.
        base: Model directory.
        data: Annotation files.
        images: Their image folders, one for each or one for all.
        val: Annotation files to validate on.
        val_images: Their image folders, likewise.
        gpu: Plans the run for one of this name.
        force: Replaces an existing file.

    Raises:
        ConfigError: There is no such config, a value can't be, or the GPU holds no such run.
    """
    path = Path(find_config(name))
    check_out(out, force)
    parent = path.stem
    if parent not in leaves() or not path.samefile(leaves()[parent]):
        raise ConfigError(f"{path} is no config of configs/; take it in as docs/training.md shows")
    given = [base, *data, *images, *val]
    warn_of(name for name in given if not (names_data(name) or names_images(name)))
    # Absolute, so that the run may be started in any directory.
    values = {"base": os.path.abspath(base)}
    for prefix, files, folders in (("", data, images), ("val_", val, val_images)):
        if files:
            values[f"{prefix}data_paths"] = list(map(absolute_path, files))
            values[f"{prefix}image_folders"] = list(map(absolute_path, folders)) * (len(files) // len(folders))
    changes = {SETTINGS[name].key: value for name, value in values.items()}
    changes |= words
    config, remarks, rate = read_config(parent, changes), {}, SETTINGS["lr"].key
    check_values(config._to_lazy_dict())  # each key is there
    released = other_rate(config.model, value_at(config, rate))
    if released is not None and rate not in changes:
        changes[rate], remarks[rate] = released, "for this release"
        print(f"lr={released:g}, for {os.path.basename(config.model.base)}; {parent} has {value_at(config, rate):g}")
    launch, theirs = launch_line(parent, out), labels_of(leaves()[parent])
    labels = {
        "title": f"As {parent}, with a base and data of one's own.",
        **{key: theirs[key] for key in ("trains", "frozen")},
        "starts from": values["base"],
        "data": f"{', '.join(values['data_paths'])}; images in {', '.join(map(absolute_path, images))}",
    }
    if gpu:
        launch = re.sub(r"NPROC_PER_NODE=\d+ | --deepspeed \S+", "", launch)
        changes, told, remark = plan_for_gpu(parent, changes, gpu)
        labels, remarks = labels | told, remarks | remark
    labels["launch"] = launch
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(derive(parent, labels, changes, remarks), encoding="utf-8")
    print(f"wrote {out}; start it with\n{launch}")


def plan_for_gpu(parent: str, changes: dict, name: str) -> tuple[dict, dict[str, str], dict[str, str]]:
    """The keys of a run on one GPU, labels that describe this run and base, and remarks; prints what to expect."""
    from ..planning.choose import choose
    from ..planning.hardware import find_gpu
    from ..planning.plan import sentence

    gpu = find_gpu(name)
    run = choose(parent, changes, gpu)
    job, changes, hardware = run.plan.job, dict(run.changes), sentence(run.memory, run.plan, gpu)
    batch, counts = (SETTINGS[each].key for each in ("batch_size", "accumulative_counts"))
    unit = "packs" if SETTINGS["pack_tokens"].key in changes else "samples"
    step = f"x {changes[counts]} accumulation x 1 GPU = {changes[batch] * changes[counts]} {unit} per step"
    trains = [words for part, words in PARTS.items() if part in job.whole]
    trains += [f"LoRA of rank {lora.rank} on the {PARTS[part]}" for part, lora in job.adapters.items()]
    own = {part: f"the {words}'s own weights" for part, words in PARTS.items() if part in job.adapters}
    frozen = [own.get(part, words) for part, words in PARTS.items() if part not in job.whole]
    frozen += ["in 4 bits"] * bool(job.quantized)
    print(hardware)
    if run.plan.steps and run.plan.steps < FEW_STEPS:
        told = "LoRA takes fewer samples per step, or set a smaller accumulative_counts"
        print(f"{run.plan.steps} steps are few: {told}")
    if gpu.dtype == "float32":
        print("no GPU was found: on a processor this is a trial (max_steps=20); --gpu 4090 plans for another machine")
    labels = {
        "title": f"{os.path.basename(run.plan.base)}, {parent}, on one GPU.",
        "trains": f"{', '.join(trains)}: {job.trained:,} of {job.shape.parameters:,} parameters",
        "frozen": ", ".join(frozen) or "nothing",
        "hardware": hardware,
    }
    return changes, labels, {batch: step}


def warn_of(missing: Iterable[str]) -> None:
    """A line for each file or folder that isn't there yet."""
    for path in missing:
        print(f"warning: {path} does not exist yet", file=sys.stderr)
