"""The record of a run in each of its checkpoints: from what, on what and with which settings it was trained.

::

    {"base": {"path": "/models/InternVL3-1B", "files": {"config.json": SHA-256, "model.safetensors": ..., ...}},
     "data": [{"name": "train", "sha256": ..., "records": 1200, "repeat": 1.0, "template": "Hermes-2", ...}, ...],
     "settings": {"model": {"type": "VisionLanguageModel", "llm_lora": {"r": 16, ...}, ...}, "optim_wrapper": ..., ...},
     "steps": {"samples_per_step": 16, "ranks": 1, "batch_size": 2, ..., "max_epochs": 1, "max_iters": None},
     "versions": {"xtuner_plugins": "0.9", "torch": ..., ...},
     "run": {"command": "xtp train my.py", "hardware": "1 x NVIDIA H100", "steps": 400, "saved": "2026-11-24T10:00:00"}}

``run`` is for the model card; nothing compares it.

All of it is plain values, so a checkpoint with it opens under ``weights_only``. How images and text were prepared
stands beside it, see `xtuner_plugins.weights.preprocessing`. Images are not hashed.
"""

import contextlib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files import write_whole
from . import manifest, preprocessing
from .errors import CheckpointError, from_outside

KEY = "record"  # in a training checkpoint
FILE = "record.json"  # in an adapter directory
OWN = "xtuner_plugins"
BASE_ENDINGS = (".safetensors", ".bin", ".json", ".model", ".tiktoken", "merges.txt", "vocab.txt")
# Written anew by each build or export, or read by no training.
NOT_OF_BASE = ("export_manifest.json", "base_manifest.json", "preprocessing.json", "generation_config.json")
VERSIONS = ("xtuner_plugins", "torch", "transformers", "tokenizers", "peft", "xtuner", "mmengine", "pillow")
LOADER = ("dataset", "sampler", "batch_sampler", "collate_fn")
SHARES, LENGTHS = ("ranks", "batch_size", "accumulative_counts"), ("max_epochs", "max_iters")
STEPS = ("samples_per_step", *SHARES, *LENGTHS)
LONGER = ": warm-up and cosine span that length from here on"
WRAPPER = ("optimizer", "paramwise_cfg", "clip_grad", "constructor")
LATER = ("optim_wrapper.constructor", "default_hooks.param_scheduler")  # records of earlier versions lack them
# They change memory, speed, or where things lie; or files of data have them of their own, and `data` holds those. A
# record tells nobody where data lie, nor the keys of a store.
_NEUTRAL = {
    "model": "base gradient_checkpointing visual_encoder_checkpointing compile_blocks row_multiple "
    "offload_activations sequence_parallel",
    "train_dataloader.sampler": "sequence_parallel",
    "train_dataloader.dataset": "base data_paths image_folders repeat_times dataset_settings storage_options "
    "reject_list on_bad_sample template max_tiles jpeg_quality",
}
NEUTRAL = tuple(f"{part}.{name}" for part, names in _NEUTRAL.items() for name in names.split())
PLAIN = (type(None), bool, int, float, str)
SHOWN = 3  # differences in one line
LONG = 80  # characters of a value in it; a reject list has more
_HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")  # of which the first digits tell enough


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, kept in the user's cache by path, size, times and inode, so that it is read once."""
    path, status = os.path.realpath(path), os.stat(path)
    stamp = [path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", OWN, "hashes")
    entry = folder / hashlib.sha256(path.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):  # not there, or damaged
        *kept, found = json.loads(entry.read_text(encoding="utf-8"))
        if kept == stamp:
            return found
    found = manifest.digest(path)
    with contextlib.suppress(OSError):  # without a cache the file is read again next time
        write_whole(entry, lambda part: part.write_text(json.dumps([*stamp, found]), encoding="utf-8"))
    return found


def base_facts(directory: str | Path) -> dict[str, Any]:
    """Path of a base, and SHA-256 of its config, weights and tokenizer files by name."""
    files = {each.name: each for each in sorted(Path(directory).iterdir()) if _is_of_base(each.name)}
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(file_hash, files.values())
    return {"path": os.path.abspath(directory), "files": dict(zip(files, hashes, strict=True))}


def _is_of_base(name: str) -> bool:
    return name.endswith(BASE_ENDINGS) and name not in NOT_OF_BASE


def data_facts(dataset: Any) -> list[dict[str, Any]]:
    """The annotation files of a live `MultimodalDataset`: their content, and what counts for their samples."""
    return [
        {
            "name": source.name,
            "sha256": " ".join(map(file_hash, sorted(getattr(source.index, "stamps", None) or [source.index.file]))),
            "columns": plain(source.index.columns),
            "rejected": sorted(map(int, rejected)),
            "repeat": source.repeat,
            "loss_weight": source.loss_weight,
            "records": len(source.index),
            "template": source.template.name,
            "tiling": repr(source.tiling),
            "jpeg_quality": repr(source.jpeg_quality),
        }
        for source, rejected in zip(dataset.sources, dataset.rejected, strict=True)
    ]


def plain(value: Any, *, fill: bool = False) -> Any:
    """A part of a config, live or with imports that are still lazy, as plain values; a class is its name.

    ``fill`` adds the defaults of our own classes; without it nothing is imported.
    """
    if isinstance(value, Mapping):
        own = {str(key): plain(each, fill=fill) for key, each in dict.items(value) if key != "type"}
        if "type" not in value:
            return own
        kind = value["type"] if fill else dict.__getitem__(value, "type")
        is_ours = str(getattr(kind, "__module__", kind)).startswith(OWN)
        return {"type": _name(kind), **(_defaults(kind) if fill and is_ours else {}), **own}
    if isinstance(value, (list, tuple, set)):
        found = [plain(each, fill=fill) for each in value]
        return sorted(found, key=str) if isinstance(value, set) else found
    return value if isinstance(value, PLAIN) else _name(value)


def _name(kind: Any) -> str:
    return str(getattr(kind, "_imported", None) or getattr(kind, "__name__", None) or kind).rpartition(".")[2]


def _defaults(kind: Any) -> dict[str, Any]:
    """The keywords of a class or function with plain defaults; none for a bare name, which a registry would resolve."""
    if isinstance(kind, str) and "." in kind:
        from mmengine.utils.misc import get_object_from_string

        kind = get_object_from_string(kind)
    parameters = inspect.signature(kind).parameters.items() if callable(kind) else ()
    return {name: plain(each.default) for name, each in parameters if isinstance(each.default, (*PLAIN, tuple))}


def defaults_of(value: Any) -> dict[str, Any]:
    """The defaults of every class that a part of a config names, where the part would name the keyword."""
    if not isinstance(value, Mapping):
        return {}
    below = {key: defaults_of(each) for key, each in value.items() if isinstance(each, Mapping)}
    return {**(_defaults(value["type"]) if "type" in value else {}), **below}


def settings_of(cfg: Mapping[str, Any], *, deepspeed: bool = False) -> dict[str, Any]:
    """The settings of a run that decide what is trained, by the config's own keys.

    Args:
        cfg: As read, or as XTuner rewrites it for ``--deepspeed``.
        deepspeed: The run will use it: XTuner then clips gradients also where the config doesn't.
    """
    loader, strategy, hooks = cfg["train_dataloader"], cfg.get("strategy") or {}, cfg.get("default_hooks") or {}
    wrapper = {**cfg["optim_wrapper"], **(cfg.get("optim_wrapper_grouping") or {})}
    clip = (wrapper.get("clip_grad") or {}).get("max_norm") or (1.0 if deepspeed else None)
    wrapper["clip_grad"] = {"max_norm": strategy.get("gradient_clipping", clip)}
    if "constructor" in wrapper:  # a class, or where it is
        wrapper["constructor"] = _name(wrapper["constructor"])
    parts = {key: _counting(loader[key], f"train_dataloader.{key}") for key in LOADER if loader.get(key)}
    return {
        "model": _counting(cfg["model"], "model"),
        "train_dataloader": parts,
        "optim_wrapper": {key: wrapper[key] for key in WRAPPER if wrapper.get(key)},
        "param_scheduler": cfg.get("param_scheduler"),
        "default_hooks": {"param_scheduler": bool(hooks.get("param_scheduler", True))},  # whether the rate follows it
    }


def _counting(settings: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if f"{part}.{key}" not in NEUTRAL}


def make(
    cfg: Mapping[str, Any],
    dataset: Any,
    *,
    ranks: int,
    dtype: str,
    resize_rule: str,
    seed: int | None = None,
    deepspeed: bool = False,
) -> dict[str, Any]:
    """The record of a run; reads all files of base and data that were not read before.

    Args:
        cfg: As for `settings_of`, like ``deepspeed``.
        dataset: The live training dataset; of another class than ours, its content isn't recorded.
        ranks: Processes of the run. Those that share a row count as one.
        dtype: What ``model.dtype`` means on this machine.
        resize_rule: That of the installed Pillow.
        seed: Of the run; None where nobody has chosen one: a run that resumes takes that of its checkpoint.
        deepspeed: Whether XTuner clips gradients also where the config doesn't.
    """
    accumulative = cfg["optim_wrapper"].get("accumulative_counts", 1)
    accumulative = (cfg.get("strategy") or {}).get("gradient_accumulation_steps", accumulative)
    batch_size = cfg["train_dataloader"]["batch_size"]
    ranks //= cfg["model"].get("sequence_parallel", 1)
    settings = plain(settings_of(cfg, deepspeed=deepspeed), fill=True)
    settings["model"]["dtype"] = dtype
    settings |= {"seed": seed, "resize_rule": resize_rule, "token_rules": preprocessing.TOKEN_RULES}
    shares = batch_size * accumulative * ranks, ranks, batch_size, accumulative
    return {
        "base": base_facts(cfg["model"]["base"]),
        "data": data_facts(dataset) if hasattr(dataset, "sources") else [],
        "settings": settings,
        "steps": dict(zip(STEPS, [*shares, *(cfg["train_cfg"].get(key) for key in LENGTHS)], strict=True)),
        "versions": {name: version(name) for name in VERSIONS},
    }


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by dotted key."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, each in value.items() for k, v in flat(each, f"{key}.{name}".lstrip(".")).items()}


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``KEY was A and is B`` for each leaf that differs."""
    then, now = flat(then), flat(now)
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return [f"{key} was {_short(then.get(key))} and is {_short(now.get(key))}" for key in keys]


def _short(value: Any) -> str:
    text = _HASH.sub(r"\1", repr(value))
    return text if len(text) <= LONG else f"{text[:LONG]}..."


def base_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between the files of two bases; None for equal ones, wherever they are."""
    for name in sorted(filter(_is_of_base, {**then["files"], **now["files"]})):
        old, new = (side["files"].get(name) for side in (then, now))
        if old != new:
            has, before = f"has SHA-256 {new[:8]}" if new else "is missing", (old or "none")[:8]
            return f"{name} of the base {now['path']} {has}, but it trained with {before} of {then['path']}"
    return None


def _compare(then: Mapping, now: Mapping, defaults: Mapping) -> tuple[list[str], list[str]]:
    """What makes two records those of different runs, and what only should be known."""
    other = [base_difference(then["base"], now["base"])]
    if len(then["data"]) != len(now["data"]):
        other.append(f"data_paths had {len(then['data'])} files and has {len(now['data'])}")
    for before, after in zip(then["data"], now["data"], strict=False):
        found = differing({**before, "name": 0}, {**after, "name": 0})  # a new name changes no sample
        other += [f"data {after['name']}: {each}" for each in found]
    old, new = ({**flat(defaults), **flat(each["settings"])} for each in (then, now))
    old, new = ({k: side[k] for k in side if k not in LATER or k in old.keys() & new.keys()} for side in (old, new))
    if None in (old.get("seed"), new.get("seed")):
        old["seed"] = new["seed"] = None
    other += differing(old, new)
    old, new = then["steps"], now["steps"]
    if old["samples_per_step"] != new["samples_per_step"]:
        said = "{samples_per_step} ({batch_size} x {accumulative_counts} x {ranks})"
        words = "samples per step (batch_size x accumulative_counts x ranks)"
        other.append(f"{words} were {said.format(**old)} and are {said.format(**new)}")
    notes = []
    for keys, words in ((SHARES, ", with as many samples per step"), (LENGTHS, LONGER)):
        found = differing({key: old[key] for key in keys}, {key: new[key] for key in keys})
        notes += [each + words for each in found]
    if then["base"]["path"] != now["base"]["path"]:
        notes.append(f"the base {now['base']['path']} has the same files as {then['base']['path']}")
    return [each for each in other if each], notes + differing(then["versions"], now["versions"])


def require_same_run(then: Any, now: Mapping[str, Any], defaults: Mapping[str, Any], path: str) -> list[str]:
    """What has changed since a checkpoint's run without making it another one.

    Args:
        then: The checkpoint's record, or None.
        now: That of the run that wants to go on.
        defaults: What `defaults_of` says of its settings, for keys that only one of the two names.
        path: Of the checkpoint.

    Raises:
        CheckpointError: It is another run's, or says nothing (None). One line: what differs, and how to go on.
    """
    anew = f"begin a new run from its weights with --cfg-options load_from={path}"
    if then is None:
        told = "holds no record of its run (saved up to 0.1.0, or the record was removed)"
        raise CheckpointError(f"--resume {path}: {told}; go on with the version that wrote it, or {anew}")
    with from_outside(f"{path}: the record of its run"):
        other, notes = _compare(then, now, defaults)
    if other:
        more = f" (and {len(other) - SHOWN} more)" if len(other) > SHOWN else ""
        said = f"{'; '.join(other[:SHOWN])}{more}"
        if any(each.startswith("model.") and " was " in each for each in other):  # its tensors may not fit another one
            anew = "export it and begin a new run with the export as its base"
        raise CheckpointError(f"--resume {path}: another run saved it: {said}; resume with what it was, or {anew}")
    return notes
