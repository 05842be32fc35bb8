"""A config of one's own: a shipped one with another base and data, and if asked for, planned for one GPU."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.check.text import check_values
from ..files import absolute_path, names_data, names_images
from ..planning.published import other_rate
from ..settings import (
    CONFIGS,
    PACKAGE,
    ROOT,
    SETTINGS,
    ConfigError,
    find_config,
    labels_of,
    leaves,
    parse_words,
    read_config,
    value_at,
)

FEW_STEPS = 30  # in which hardly anything is learned
PARTS = {"visual_encoder": "vision encoder", "projector": "projector", "llm": "LLM"}


def write_own(args: argparse.Namespace) -> None:
    """Writes a config that takes in a shipped one, and prints how it is started.

    Args:
        args: Of `tools/configs.py`: ``name`` of the shipped config, the file to ``write``, ``base``, annotation
            files (``data``) and their folders (``images``, one for each or one for all), ``gpu`` to plan for or None,
            the words of ``set`` and ``cfg_options``, and ``force`` to replace an existing file.

    Raises:
        ConfigError: There is no such config, a value can't be, or the GPU holds no such run.
    """
    path, out = Path(find_config(args.name)), Path(args.write)
    check_out(out, args.force)
    parent = path.stem
    if parent not in leaves() or not path.samefile(leaves()[parent]):
        raise ConfigError(f"{path} is no config of configs/; take it in as docs/training.md shows")
    given = [args.base, *args.data, *args.images]
    warn_of(name for name in given if not (names_data(name) or names_images(name)))
    # Absolute, so that the run may be started in any directory.
    base = os.path.abspath(args.base)
    data, images = (list(map(absolute_path, each)) for each in (args.data, args.images))
    values = {"base": base, "data_paths": data, "image_folders": images * (len(data) // len(images))}
    changes = {SETTINGS[name].key: value for name, value in values.items()} | parse_words(args.set, args.cfg_options)
    config, remarks, rate = read_config(parent, changes), {}, SETTINGS["lr"].key
    check_values(config._to_lazy_dict())  # each key is there
    released = other_rate(config.model, value_at(config, rate))
    if released is not None and rate not in changes:
        changes[rate], remarks[rate] = released, "for this release"
        print(f"lr={released:g}, for {os.path.basename(config.model.base)}; {parent} has {value_at(config, rate):g}")
    theirs = labels_of(leaves()[parent])
    labels = {
        "title": f"As {parent}, with a base and data of one's own.",
        **{key: theirs[key] for key in ("trains", "frozen")},
        "starts from": base,
        "data": f"{', '.join(data)}; images in {', '.join(images)}",
    }
    launch = launch_line(parent, out)
    if args.gpu:
        launch = re.sub(r"NPROC_PER_NODE=\d+ | --deepspeed \S+", "", launch)
        changes, told, remark = plan_for_gpu(parent, changes, args.gpu)
        labels, remarks = labels | told, remarks | remark
    write(out, parent, labels | {"launch": launch}, changes, remarks)


def write(
    out: Path,
    parent: str,
    labels: Mapping[str, str | Sequence[str]],
    changes: Mapping[str, Any],
    remarks: Mapping[str, str],
) -> None:
    """Writes a config, and prints how it is started.

    Args:
        out: The file.
        parent: Stem of the config that it takes in.
        labels: Of its docstring: ``title``, then e.g. ``data``; several lines where several are given. ``launch`` is
            also what is printed.
        changes: Keys of the runner with their values.
        remarks: Comments behind some of them, by key.
    """
    module = ".".join((PACKAGE, *leaves()[parent].relative_to(CONFIGS).with_suffix("").parts))
    lines = [f'"""{_docstring(labels)}', '"""', "", "from mmengine.config import read_base", ""]
    lines += ["with read_base():", f"    from {module} import *", ""]
    for key, value in changes.items():
        line = f"{key} = {literal(value)}"
        if len(line) > 120 and isinstance(value, list):
            line = "\n".join([f"{key} = [", *(f"    {literal(each)}," for each in value), "]"])
        lines.append(f"{line}  # {remarks[key]}" if key in remarks else line)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {out} on top of {parent}; start it with\n{labels['launch']}")


def _docstring(labels: Mapping[str, str | Sequence[str]]) -> str:
    lines = [str(labels["title"]), ""]
    for label, said in list(labels.items())[1:]:
        for number, text in enumerate([said] if isinstance(said, str) else said):
            first = f"{'' if number else label:<16}"
            whole = {"break_long_words": False, "break_on_hyphens": False}
            lines += textwrap.wrap(text, 120, initial_indent=first, subsequent_indent=" " * 16, **whole)
    return "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")


def plan_for_gpu(parent: str, changes: dict, name: str) -> tuple[dict, dict[str, str], dict[str, str]]:
    """What fits one GPU; prints what to expect of it.

    Args:
        parent: Stem of the config that is taken in.
        changes: Keys of the runner with the values that the config gives them.
        name: Of the GPU, as ``xtp plan --gpu`` takes it.

    Returns:
        The keys of the run, labels of the docstring that describe this run and base, and remarks behind some keys.

    Raises:
        ConfigError: The run doesn't fit this GPU.
        ValueError: There is no such GPU.
    """
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


def literal(value: Any) -> str:
    """``repr``, with strings quoted as ruff formats them."""
    if isinstance(value, str):
        return repr(value) if '"' in value and "'" not in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value).replace("e-0", "e-")


def check_out(out: Path, force: bool) -> None:
    """Raises `ConfigError` where no config may be written: no ``.py``, or a file that exists (without `force`)."""
    if out.suffix != ".py":
        raise ConfigError(f"{out}: a config is a Python file; name it {out.with_suffix('.py')}")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; --force replaces it")


def launch_line(parent: str, out: Path) -> str:
    """The launch line of a config of configs/ (number of processes, ``--deepspeed``) for another config."""
    train = ROOT / "tools" / "train.py"
    here = str(train.relative_to(Path.cwd())) if train.is_relative_to(Path.cwd()) else str(train)
    found = re.match(
        r"(?P<before>.*?)(?:xtuner train|python \S*train\.py) +\S+(?P<after>.*)", labels_of(leaves()[parent])["launch"]
    )
    return f"{found['before']}python {shlex.quote(here)} {shlex.quote(str(out))}{found['after']}"
