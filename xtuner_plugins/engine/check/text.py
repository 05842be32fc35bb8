"""What a config's text tells: misspelled keywords, values out of range, paths that aren't there, nothing that trains.

No type of the config is imported, and no large library: this takes part of a second. `build` does the rest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ... import ranges
from ...families import PARTS, target_matcher
from ...files import is_url, names_data, names_images
from ...hub.constants import token_grid
from ...hub.conversation import get_conv_template
from ...settings import (
    CONFIGS,
    PACKAGE,
    SETTINGS,
    VALIDATION,
    ConfigError,
    did_you_mean,
    labels_of,
    leaves,
    read_config,
    typed_nodes,
    value_at,
)
from .signatures import parameters

FAR = 4  # times as many samples per step as the recipe: its learning rate is no longer the right one


def step_note(cfg: Config, ranks: int) -> str:
    """That a step has far more or fewer samples than in the recipe whose learning rate it has; '' where it hasn't.

    Args:
        cfg: the config of a run; a recipe is the config of configs/ that it is, or takes in.
        ranks: processes of the run.
    """
    path, known = Path(cfg.filename), leaves()
    taken_in = re.search(rf"from {PACKAGE}\.(?:\w+\.)*(\w+) import \*", path.read_text(encoding="utf-8"))
    name = taken_in[1] if taken_in else path.stem
    if name not in known or not (taken_in or path.samefile(known[name])):
        return ""
    recipe = read_config(name)
    own = re.search(r"NPROC_PER_NODE=(\d+)", labels_of(known[name]).get("launch", ""))
    counts = [
        value_at(each, "train_dataloader.batch_size", 1) * value_at(each, "optim_wrapper.accumulative_counts", 1) * of
        for each, of in ((cfg, ranks), (recipe, int(own[1]) if own else 1))
    ]
    rates = [value_at(each, SETTINGS["lr"].key) for each in (cfg, recipe)]
    if rates[0] != rates[1] or max(counts) < FAR * min(counts):
        return ""
    told = f"{counts[0]} samples per step, but {name} has {counts[1]}, for which its lr={rates[1]:g} is meant"
    return f"{told}; change accumulative_counts or lr"


# What the runner takes out of these parts before it builds them.
_TAKEN_OUT = {
    "optim_wrapper": {"constructor", "paramwise_cfg"},
    "param_scheduler": {"convert_to_iter_based"},
    "train_cfg": {"by_epoch"},
    "train_dataloader": {"num_batch_per_epoch"},
}
# Parts without a type, and what takes their keys.
_UNTYPED = {
    "train_dataloader": ("torch.utils.data", "DataLoader"),
    "randomness": ("mmengine.runner.utils", "set_random_seed"),
}
# What a key's value has to pass; None is left to its class.
CHECKS: dict[str, Callable[[Any], Any]] = {
    **{SETTINGS[name].key: partial(ranges.check, name) for name in ranges.RANGES if name in SETTINGS},
    "model.visual_encoder_lora.r": partial(ranges.check, "lora_rank"),
    "model.visual_encoder_lora.lora_dropout": partial(ranges.check, "lora_dropout"),
    "model.llm_lora.target_modules": target_matcher,
    "model.visual_encoder_lora.target_modules": target_matcher,
    "model.objectives": ranges.check_objectives,
    "train_dataloader.dataset.storage_options": ranges.check_storage_options,
    "train_dataloader.dataset.template": get_conv_template,
    "default_hooks.validation.benchmarks": ranges.check_benchmarks,
}
_PLAIN = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


def check_text(cfg: Config) -> None:
    """Raises where base or data aren't there, nothing reads a key, or a value can't be; imports nothing large.

    Raises:
        ConfigError: A part of the config is missing, a path doesn't exist, a keyword that its type doesn't know, a
            value of another type or out of its range, or nothing that trains.
    """
    whole = cfg._to_lazy_dict()
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if key not in whole:
            raise ConfigError(f"the config has no {key!r}; compare with configs/pretrain_mlp.py")
    check_values(whole)
    if (base := value_at(whole, "model.base")) is not None:
        check_base(base, cfg.filename)
    for key_path, node in typed_nodes(whole["train_dataloader"], "train_dataloader"):
        _check_paths(f"{key_path}.", node)
    _check_paths("val_", value_at(whole, VALIDATION) or {})
    _check_tiling(whole)


def check_values(cfg: Mapping[str, Any]) -> None:
    """Raises `ConfigError` on keywords and values of a config's lazy dict; neither base nor data are opened."""
    for key_path, node in typed_nodes(cfg):
        check_keywords(key_path, node, *_place_of(node["type"]))
    for key_path, place in _UNTYPED.items():
        check_keywords(key_path, cfg.get(key_path) or {}, *place)
    for name, hook in (cfg.get("default_hooks") or {}).items():
        if hook and "type" not in hook:
            hint = did_you_mean(name, cfg["default_hooks"].keys() - {name}, "give it one", show=repr)
            raise ConfigError(f"default_hooks.{name}: a hook needs a type, got {dict(hook)!r}; {hint}")
    for key_path, check_value in CHECKS.items():
        if (value := value_at(cfg, key_path)) is not None:
            with refused(key_path.rpartition(".")[0]):
                check_value(value)
    if value_at(cfg, SETTINGS["pack_tokens"].key) is not None:
        with refused("train_dataloader"):
            ranges.check_packs(value_at(cfg, "train_dataloader.batch_size", 1))
    with refused("train_cfg"):
        ranges.check_length(value_at(cfg, "train_cfg.max_iters"), value_at(cfg, "train_cfg.max_epochs"))
    _check_what_trains(cfg.get("model") or {})


def check_keywords(key_path: str, node: Mapping[str, Any], module: str | None, name: str | None) -> None:
    """Raises `ConfigError` on a key that its class doesn't take, or a value of another type, as the source says.

    Args:
        key_path: Of the node.
        node: The settings; ``type`` is none of them.
        module, name: Where the class is; None where that isn't known.
    """
    found = parameters(module, name) if module and name else None
    if found is None or (found.takes_any and not module.startswith("xtuner_plugins.")):
        return
    known = {*found.hints, *_TAKEN_OUT.get(key_path.rsplit(".", 1)[-1].split("[")[0], ())}
    for key, value in node.items():
        if key == "type":
            continue
        if key not in known:
            hint = did_you_mean(key, known, f"known: {', '.join(sorted(known))}", show=repr)
            raise ConfigError(f"{key_path}.{key}: {name} has no setting {key!r}; {hint}")
        kinds = [each.strip() for each in (found.hints.get(key) or "").split("|")]
        if isinstance(value, (str, bool, int, float)) and set(kinds) <= _PLAIN.keys():
            if type(value) not in [kind for each in kinds for kind in _PLAIN[each]]:
                raise ConfigError(f"{key_path}.{key}={value!r}: {name} takes {' or '.join(kinds)}")


def _place_of(kind: Any) -> tuple[str | None, str | None]:
    """(module, name) of a type: a lazy import, a dotted text, or itself; a name alone is looked up when it is built."""
    if isinstance(kind, str):
        module, _, name = kind.rpartition(".")
        return module or None, name
    module = getattr(kind, "_module", None) or getattr(kind, "__module__", None)
    name = getattr(kind, "_imported", None) or getattr(kind, "__name__", None)
    return (module, name) if isinstance(module, str) and isinstance(name, str) else (None, None)


def _check_what_trains(model: Mapping[str, Any]) -> None:
    """Raises where nothing trains, or 4 bits hold an LLM without adapters."""
    if _place_of(model.get("type"))[1] not in ("VisionLanguageModel", "PreferenceModel"):
        return
    adapters, rows = model.get("llm_lora"), model.get("train_head")
    thawed = not all(model.get(f"freeze_{part}", row.is_frozen) for part, row in PARTS.items())
    if not (thawed or adapters or rows or model.get("visual_encoder_lora") or model.get("visual_encoder_last_layers")):
        raise ConfigError("model: nothing would train; set model.freeze_projector=False, or give model.llm_lora")
    if model.get("llm_quantization") and not (adapters or rows):
        raise ConfigError(
            "model.llm_quantization: an LLM in 4 bits trains through adapters, and model.llm_lora is None; give it, or "
            "set model.llm_quantization=None"
        )


def check_base(base: str, config: str | None = None) -> None:
    """Raises where ``base`` isn't an official directory; ``config`` is the file whose docstring says how to get it."""
    here = Path(base)
    if not here.is_dir():
        raise ConfigError(f"model.base={base!r}: no such directory; {missing_base(base, config)}")
    if not (here / "config.json").is_file():
        raise ConfigError(f"model.base={base!r} holds no config.json, so it is not an official model directory")
    if not any((here / f"{name}.json").is_file() for name in ("tokenizer", "tokenizer_config")):
        raise ConfigError(f"model.base={base!r} holds no tokenizer (no tokenizer.json, no tokenizer_config.json)")
    fields = _fields(base)
    if fields and "vision_config" not in fields:
        kind = f"model_type {fields.get('model_type')!r}, no vision_config in its config.json"
        raise ConfigError(f"model.base={base!r} has no vision part ({kind}); make one with tools/build_base_model.py")
    if not any(path.suffix in (".safetensors", ".bin") for path in here.iterdir()):
        raise ConfigError(f"model.base={base!r} holds no weights (*.safetensors); {missing_base(base, config)}")


def missing_base(base: str, config: str | None) -> str:
    """How to get a base that isn't there: as the config's docstring says, else by what its path looks like."""
    label = labels_of(config).get("starts from", "") if config and Path(config).suffix == ".py" else ""
    named, _, command = label.partition(":")
    if command and os.path.normpath(named.split(",")[0]) == os.path.normpath(base):
        return f"make it: {command.strip().replace(' python ', ' && python ')}"
    if "exports" in Path(base).parts:
        stage = leaves().get(Path(base).name)
        earlier = os.path.relpath(stage, CONFIGS.parent) if stage else "CONFIG"
        return f"export the earlier stage: python tools/convert_to_official.py {earlier} CHECKPOINT {base}"
    return (
        f"assemble one with python tools/build_base_model.py --vision DIR --llm DIR --out {base}, or download a "
        f"released one with hf download ORG/MODEL --local-dir {base}"
    )


def _fields(base: Any) -> dict[str, Any]:
    """A base's config.json; empty where it can't be read, which the build then says."""
    try:
        fields = json.loads(Path(base, "config.json").read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _check_tiling(cfg: Mapping[str, Any]) -> None:
    """Raises on tile limits that can't be, or where the largest image fits into no sample or no pack."""
    where = "train_dataloader.dataset"
    dataset = value_at(cfg, where) or {}
    high = dataset.get("max_tiles")
    if high is None:
        return
    with refused(where):
        ranges.check_tiles(1, high)
    base = _fields(value_at(cfg, "model.base"))
    size, patch = base.get("force_image_size"), value_at(base, "vision_config.patch_size")
    if not (size and patch and base.get("downsample_ratio")) or dataset.get("dataset_settings"):
        return  # what the build knows: directories of another format, limits of single files
    tokens = token_grid(size, patch, base["downsample_ratio"], base.get("projector_type")) ** 2
    for name in ("max_length", "pack_tokens"):
        if (limit := value_at(cfg, SETTINGS[name].key)) is not None:
            with refused(where):
                ranges.check_room(high, bool(base.get("use_thumbnail")), tokens, limit, name)


def _check_paths(prefix: str, node: Mapping[str, Any]) -> None:
    """Raises where a path isn't there, or a URL is of a kind that isn't read."""
    for setting, is_right, kind in (("data_paths", names_data, "file"), ("image_folders", names_images, "folder")):
        values = node.get(setting) or []
        for value in [values] if isinstance(values, str) else filter(None, values):
            with refused(f"{prefix}{setting}"):
                if not isinstance(value, str):
                    raise ValueError(f"{value!r} is no path; name each {kind} by its path")
                if is_url(value):
                    ranges.check_store_url(value)
                if not is_right(value):
                    raise ValueError(f"{kind} {value} does not exist")
                if setting == "data_paths" and os.path.isfile(value) and not os.path.getsize(value):
                    raise ValueError(f"{value} holds no records; give it records")


@contextmanager
def refused(key: str) -> Iterator[None]:
    """What a part refuses becomes a `ConfigError` that names its key."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, AssertionError, KeyError, OSError, RuntimeError) as error:
        raise ConfigError(f"{key}: {error or type(error).__name__}") from error
