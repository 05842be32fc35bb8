"""Writes InternVL configs of XTuner 0.2.0 as configs of our own, each on top of one of configs/.

Values are taken from what XTuner would build (``model``, ``train_dataloader``, ...) and not from the settings above it,
so an edited config is read as it would train. What has no counterpart here becomes a note. Nothing is imported.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..families import PARTS
from ..files import absolute_path
from ..planning.published import BASES
from ..settings import RUNNER_KEYS, ConfigError, did_you_mean, labels_of, leaves, read_config, value_at
from .own_config import check_out, launch_line, warn_of, write

TEMPLATES = {"internlm2_chat": "internlm2-chat", "phi3_chat": "phi3-chat"}  # XTuner's name: ours
_DATA, _CHECKPOINT = "train_dataloader.dataset", "default_hooks.checkpoint"
# Keys that mean the same here.
_SAME = {
    *("model.freeze_llm", "model.freeze_visual_encoder"),
    *(f"model.llm_lora.{key}" for key in ("r", "lora_alpha", "lora_dropout")),
    *("train_dataloader.batch_size", "train_dataloader.num_workers", f"{_DATA}.max_length"),
    *("optim_wrapper.accumulative_counts", "optim_wrapper.clip_grad.max_norm", "train_cfg.max_epochs"),
    *(f"optim_wrapper.optimizer.{key}" for key in ("lr", "betas", "weight_decay")),
    *(f"{_CHECKPOINT}.{key}" for key in ("by_epoch", "interval", "max_keep_ckpts")),
}
# Keys that `_Reader` reads in its own way.
_READ = re.compile(
    rf"model\.(model_path|quantization_llm|llm_lora\.(type|task_type))|{_DATA}\.(model_path|template)"
    rf"|{_DATA}\.(data_paths|image_folders|repeat_times)|param_scheduler|train_cfg\.max_iters"
    r"|train_dataloader\.sampler\.(?!type).*"
)
# What this config of XTuner's says beside these keys happens here, too, or is told in every import; other values become
# notes.
REFERENCE = "internvl_v2_internlm2_5_8b_lora_finetune"
_FREEZE = {f"model.freeze_{part}": row.is_frozen for part, row in PARTS.items()}
ALWAYS = (
    "system prompt: XTuner writes one that names InternLM or Phi-3; here it is the template's own",
    "float16 needs no optim_wrapper here (dtype='float16', loss_scale='dynamic'): dtype is 'auto', the loss is scaled",
    "weight_decay: not on norms and biases here; XTuner decays them too",
    "save_steps and max_steps count optimizer steps here, micro-batches in XTuner",
    "save_optimizer=False is not carried over: checkpoints can be resumed here",
)


def find_xtuner_config(name: str) -> str:
    """The path of a config that is given by its path, or by the name of one that XTuner ships.

    Raises:
        ConfigError: There is none; names those whose names are nearest.
    """
    if Path(name).is_file():
        return name
    folder = Path(importlib.util.find_spec("xtuner").submodule_search_locations[0], "configs")  # imports nothing
    known = {path.stem: str(path) for path in folder.rglob("*.py") if not path.name.startswith("_")}
    if name not in known:
        hint = did_you_mean(Path(name).stem, known, "give a path, or a name as `xtuner train` takes it", n=3)
        raise ConfigError(f"config {name} does not exist; {hint}")
    return known[name]


def import_config(name: str, out: Path, base: str | None, force: bool) -> None:
    """Writes an InternVL config of XTuner's as one of ours; prints what it couldn't say and how it is started.

    Args:
        name: Its path, or the name of one that XTuner ships.
        out: The file to write.
        base: Model directory to train from; None takes the config's own.
        force: Replaces an existing file.

    Raises:
        ConfigError: No such file, one that doesn't run, or one that trains something else.
    """
    if out.exists() and Path(name).exists() and out.samefile(name):
        raise ConfigError(f"{out} is the config itself; name another file with --write")
    check_out(out, force)
    path = find_xtuner_config(name)
    cfg, usual = (dict(_flat(read_config(each)._to_lazy_dict())) for each in (path, find_xtuner_config(REFERENCE)))
    usual.pop("custom_hooks")  # they hold the base's tokenizer, so they always differ
    for key in ("model.type", f"{_DATA}.type"):
        if (kind := str(cfg.get(key))) != (read := str(usual[key])):
            raise ConfigError(f"config {path}: {key} is {kind}; XTuner's configs of {read} are read, no others")
    parent, hub = _method(cfg), str(cfg.get("model.model_path"))
    known = {row.hub: row for row in BASES.values() if row.hub}.get(hub)
    start = os.path.abspath(base or (f"models/{known.name}" if known else hub))
    how = "" if base or Path(start).is_dir() else f"hf download {hub} --local-dir {start}"
    notes = [f"model_path={hub}: get it with `{how}`, or give --base"] if how else []
    changes = {"model.base": start, **_data(cfg, known, notes), **_plain(cfg, usual, notes), **_schedule(cfg, notes)}
    if cfg.get("model.quantization_llm") and parent != "finetune_qlora":
        notes.append("model.quantization_llm is not carried over: only an LLM with LoRA is held in 4 bits")
    notes += ALWAYS
    present, usually = read_config(parent), {**_FREEZE, "model.dtype": "auto"}
    changes = {key: value for key, value in changes.items() if value != value_at(present, key, usually.get(key))}
    launch = re.sub(r"^(NPROC_PER_NODE=\d+ )?", "NPROC_PER_NODE=8 ", launch_line(parent, out))  # as XTuner's own
    launch += "" if "--deepspeed" in launch else " --deepspeed deepspeed_zero2"
    files, folders = (changes.get(f"{_DATA}.{key}") or [] for key in ("data_paths", "image_folders"))
    labels = {
        "title": f"As XTuner's {Path(path).name} trains it.",
        "trains": labels_of(leaves()[parent])["trains"].partition(" (")[0] + ", projector" * ("lora" in parent),
        "starts from": [f"{start}:", how] if how else start,
        "data": f"{', '.join(files)}; images in {', '.join(folders)}",
        "hardware": "8 GPUs; not run yet",
        "launch": launch,
        "differs": notes[bool(how) :],
    }
    warn_of(path for path in dict.fromkeys([start, *files, *folders]) if "://" not in path and not Path(path).exists())
    print(*(f"note: {note}\n" for note in notes), sep="", end="")
    write(out, parent, labels, changes, {})


def _method(cfg: Mapping[str, Any]) -> str:
    """The config of ours that trains the same parts."""
    if "model.llm_lora.r" in cfg:
        return "finetune_qlora" if cfg.get("model.quantization_llm") else "finetune_lora"
    return "pretrain_mlp" if cfg.get("model.freeze_llm") else "finetune_full"


def _data(cfg: Mapping[str, Any], known: Any, notes: list[str]) -> dict[str, Any]:
    """Files, which are found from anywhere, and template of the dataset; ``known`` is what is known of the base."""
    settings = {f"{_DATA}.repeat_times": cfg.get(f"{_DATA}.repeat_times")}
    for key in (f"{_DATA}.data_paths", f"{_DATA}.image_folders"):
        if value := cfg.get(key):
            settings[key] = list(map(absolute_path, [value] if isinstance(value, str) else value))
    theirs = cfg.get(f"{_DATA}.template")
    template = TEMPLATES.get(str(theirs))
    if template is None:
        notes.append(f"template {_shortened(theirs)} is not carried over; the base's own is used")
    elif known is None or known.template != template:
        settings[f"{_DATA}.template"] = template
    return settings


def _plain(cfg: Mapping[str, Any], usual: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Keys that mean the same here; a note for each that nothing reads, unless it is off, as if it were missing."""
    settings: dict[str, Any] = {"model.dtype": "auto", "model.freeze_projector": False}  # XTuner always trains it
    for key, value in cfg.items():
        if key in _SAME:
            settings[key] = float(value) if key.endswith("max_norm") else value
        elif key == "optim_wrapper.dtype" and value == "bfloat16":
            settings["model.dtype"] = value
        elif key == "train_dataloader.sampler.type" and str(value) == "DefaultSampler":
            settings["train_dataloader.sampler.group_by"] = None
        elif value is not None and not _READ.fullmatch(key) and str(usual.get(key) or None) != str(value or None):
            notes.append(f"{key}={_shortened(value)} is not carried over")
    return settings


def _flat(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of what a runner reads, with their values; lists stay whole."""
    for key, value in node.items():
        if at or key in RUNNER_KEYS:
            if isinstance(value, Mapping):
                yield from _flat(value, f"{at}{key}.")
            elif value != []:
                yield f"{at}{key}", value


def _schedule(cfg: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Length of the run, and the share of its warm-up."""
    settings, epochs = {}, cfg.get("train_cfg.max_epochs")
    if (num_batches := cfg.get("train_cfg.max_iters")) is not None:
        steps = math.ceil(num_batches / cfg.get("optim_wrapper.accumulative_counts", 1))
        settings |= {"train_cfg.max_iters": steps, "train_cfg.max_epochs": None}
    schedulers = cfg.get("param_scheduler") or []
    kinds = [str(each.get("type")) for each in schedulers]
    if kinds == ["LinearLR", "CosineAnnealingLR"] and not schedulers[1].get("eta_min") and epochs:
        settings["param_scheduler.warmup_ratio"] = float(f"{schedulers[0]['end'] / epochs:.6g}")
    else:
        notes.append("param_scheduler is not carried over: a linear start and a cosine to 0 here; set warmup_ratio")
    return settings


def _shortened(value: Any) -> str:
    return textwrap.shorten(repr(value), 80, placeholder="...")
