"""What a config's text alone tells: misspelled keywords, values out of range, a base that lacks something.

No type of the config is imported. `config_check` asks the types themselves afterwards; both use the ranges of
`ranges.py`, and say the same of a keyword that nothing knows.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..families import ENCODER_FAMILIES, LLM_FAMILIES, target_matcher
from ..hub.constants import token_grid
from ..hub.conversation import get_conv_template
from ..ranges import (
    check_answer_tokens,
    check_backend_args,
    check_batch_size,
    check_benchmark_limit,
    check_benchmarks,
    check_beta,
    check_dropout,
    check_dtype,
    check_interval,
    check_label_smoothing,
    check_margin,
    check_max_norm,
    check_objectives,
    check_optimizer,
    check_rank,
    check_rate,
    check_room,
    check_row_multiple,
    check_tiles,
    check_val_batch_size,
    check_warmup_ratio,
)
from ..settings import ConfigError, typed_nodes, validation_settings
from .signatures import parameters

# Arguments that the runner adds when it builds these parts.
BUILT_WITH = {
    "optim_wrapper": {"optimizer", "constructor", "paramwise_cfg", "type"},
    "optimizer": {"params"},
    "param_scheduler": {"optimizer", "convert_to_iter_based"},
    "sampler": {"dataset", "seed"},
    "batch_sampler": {"sampler", "batch_size"},
    "train_cfg": {"runner", "dataloader", "by_epoch"},
    "collate_fn": {"samples", "data_batch", "instances"},
    "visualizer": {"name", "save_dir"},
    "model_wrapper_cfg": {"module", "device_ids"},
}
# Ranges by the key of the config. A setting that is None is left to its class.
RANGES: dict[str, Callable[[Any], Any]] = {
    "model.dtype": check_dtype,
    "model.row_multiple": check_row_multiple,
    "model.llm_lora.r": check_rank,
    "model.llm_lora.lora_dropout": check_dropout,
    "model.visual_encoder_lora.r": check_rank,
    "model.visual_encoder_lora.lora_dropout": check_dropout,
    "model.objectives": check_objectives,
    "model.beta": check_beta,
    "model.label_smoothing": check_label_smoothing,
    "model.margin": check_margin,
    "train_dataloader.batch_size": check_batch_size,
    "train_dataloader.dataset.backend_args": check_backend_args,
    "train_dataloader.dataset.template": get_conv_template,
    "optim_wrapper.optimizer.name": check_optimizer,
    "optim_wrapper.optimizer.lr": check_rate,
    "optim_wrapper.clip_grad.max_norm": check_max_norm,
    "param_scheduler.warmup_ratio": check_warmup_ratio,
}
# The same of `ValidationHook`; their messages name the setting by its short name.
VALIDATION_RANGES: dict[str, Callable[[Any], Any]] = {
    "interval": check_interval,
    "batch_size": check_val_batch_size,
    "benchmarks": check_benchmarks,
    "benchmark_limit": check_benchmark_limit,
    "max_new_tokens": check_answer_tokens,
}

_TOWERS = (("llm", "language_model.", "llm_config"), ("visual_encoder", "vision_model.", "vision_config"))
_OTHER_TARGETS = {"target_parameters", "trainable_token_indices", "modules_to_save"}  # beside target_modules


def check_spelling(cfg: Any) -> None:
    """Raises `ConfigError` on a keyword that the source of its type doesn't know.

    Args:
        cfg: A config whose types aren't imported yet.
    """
    for key_path, node in typed_nodes(cfg._to_lazy_dict()):
        module, name = getattr(node["type"], "_module", None), getattr(node["type"], "_imported", None)
        found = parameters(module, name) if isinstance(module, str) and isinstance(name, str) else None
        if found is not None and (not found[1] or module.startswith("xtuner_plugins.")):
            check_known(key_path, node, found[0], name)


def check_known(key_path: str, node: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Raises `ConfigError` on a key of ``node`` that is no parameter of its type, nor given by the runner."""
    role = key_path.rsplit(".", 1)[-1].split("[")[0]
    known = {*known, *BUILT_WITH.get(role, ())}
    for key in node:
        if key != "type" and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{key_path}.{key}: {owner} has no setting {key!r}; {hint}")


def check_values(cfg: Mapping[str, Any]) -> None:
    """Raises `ConfigError` on a value out of its range, or where no image can have ``max_tiles``."""
    for key_path, check in RANGES.items():
        parent, _, key = key_path.rpartition(".")
        node = _at(cfg, parent)
        if isinstance(node, Mapping) and node.get(key) is not None:
            _refused(parent, lambda check=check, value=node[key]: check(value))
    own = _at(cfg, "train_dataloader.dataset.dataset_settings")
    for number, settings in enumerate(own if isinstance(own, (list, tuple)) else [own]):
        if isinstance(settings, Mapping) and settings.get("backend_args") is not None:
            where = f"train_dataloader.dataset.dataset_settings[{number}]"
            _refused(where, lambda value=settings["backend_args"]: check_backend_args(value))
    validation = validation_settings(cfg)
    for key, value in validation.items():
        if key in VALIDATION_RANGES:
            _refused("", lambda check=VALIDATION_RANGES[key], value=value: check(value))
    _check_tiling(cfg)
    for part, prefix, section in _TOWERS:
        lora = _at(cfg, f"model.{part}_lora") or {}
        if lora.get("target_modules") not in (None, "all-linear") and not _OTHER_TARGETS & set(lora):
            _check_targets(_at(cfg, "model.base"), f"model.{part}_lora", lora["target_modules"], prefix, section)


def _check_targets(base: Any, where: str, targets: Any, prefix: str, section: str) -> None:
    """Raises where no layer has such a name; the names are those of the weights, or those that they are read as."""
    config = _fields(base).get(section) or {}
    if config.get("model_type") == "internlm2":
        layers = _llama_layers(config)
    elif config.get("model_type") in {**LLM_FAMILIES, **ENCODER_FAMILIES}:
        layers = [key.removeprefix(prefix).removesuffix(".weight") for key in _weights(base) if key.startswith(prefix)]
    else:
        return  # its layers get other names when it is read
    try:
        matches = target_matcher(targets)
    except re.error as error:
        raise ConfigError(f"{where}.target_modules={targets!r} is no regular expression: {error}") from None
    if layers and not any(map(matches, layers)):
        known = sorted({layer.rpartition(".")[2] for layer in layers if not layer.endswith(("norm", ".bias"))})
        raise ConfigError(f"{where}.target_modules={targets!r} is no layer here; it has {', '.join(known)}")


def _llama_layers(config: Mapping[str, Any]) -> list[str]:
    """Names of the layers of an InternLM2 as training holds it, which is a Llama."""
    return ["model.embed_tokens", "lm_head"] + [
        f"model.layers.{index}.{'self_attn' if name[1:] == '_proj' else 'mlp'}.{name}"
        for index in range(config.get("num_hidden_layers") or 0)
        for name in LLM_FAMILIES["llama"].lora_targets
    ]


def _weights(base: str) -> list[str]:
    """Names of a directory's tensors, from its index or the header of its only file."""
    try:
        if (index := Path(base, "model.safetensors.index.json")).is_file():
            return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        with Path(base, "model.safetensors").open("rb") as file:
            return list(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    except (OSError, ValueError, KeyError):
        return []  # what is wrong with it is said when it is read


def _check_tiling(cfg: Mapping[str, Any]) -> None:
    where = "train_dataloader.dataset"
    dataset = _at(cfg, where) or {}
    high, length = dataset.get("max_tiles"), dataset.get("max_length")
    if high is None:
        return
    low = dataset.get("min_tiles")
    _refused(where, lambda: check_tiles(1 if low is None and high != 0 else low or high, high))
    base = _fields(_at(cfg, "model.base"))
    vision, size = base.get("vision_config") or {}, base.get("force_image_size")
    if not (size and vision.get("patch_size") and base.get("downsample_ratio") and type(length) is int):
        return  # a directory of another format, which takes more to read
    if dataset.get("dataset_settings"):
        return  # limits of single files are known when all of it is built
    thumbnail = dataset.get("use_thumbnail")
    thumbnail = base.get("use_thumbnail", False) if thumbnail is None else thumbnail
    grid = [size, vision["patch_size"], base["downsample_ratio"], base.get("projector_type")]
    _refused(where, lambda: check_room(high, bool(thumbnail), token_grid(*grid) ** 2, length))


def check_vision(base: str) -> None:
    """Raises `ConfigError` where a model directory holds a language model alone."""
    fields = _fields(base)
    if fields and "vision_config" not in fields:
        kind = f"model_type {fields.get('model_type')!r}, no vision_config in its config.json"
        raise ConfigError(f"model.base={base!r} has no vision part ({kind}); make one with tools/build_base_model.py")


def _fields(base: Any) -> dict[str, Any]:
    """A base's config.json; empty where it can't be read, which `config_check` then says."""
    try:
        fields = json.loads(Path(base, "config.json").read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _at(cfg: Any, key_path: str) -> Any:
    for key in key_path.split("."):
        cfg = cfg.get(key) if isinstance(cfg, Mapping) else None
    return cfg


def _refused(where: str, check: Callable[[], Any]) -> None:
    try:
        check()
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
