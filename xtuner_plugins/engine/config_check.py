"""Checks a training config before any process starts: unknown settings, missing directories and files.

MMEngine finds a misspelt keyword only when it builds the object, minutes later and with a traceback, and never finds
a misspelt name at the top level. Here every ``dict(type=...)`` is bound to the signature of its type.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

# What MMEngine's runners and XTuner's command read at the top level of a config.
RUNNER_KEYS = frozenset(
    """model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr
    optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks data_preprocessor load_from
    resume launcher env_cfg log_processor log_level visualizer default_scope randomness experiment_name cfg
    model_wrapper_cfg find_unused_parameters runner_type strategy compile extra_ckpt sync_bn model_resource
    pretrained_model_name_or_path""".split()
)
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


class ConfigError(ValueError):
    """A config that can't be trained; the message names the key, the value and the remedy."""


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Reads a Python config and lays ``--cfg-options`` over it.

    Raises:
        ConfigError: No such file, a file that doesn't run, or an option that nothing would read.
    """
    if not Path(path).is_file():
        raise ConfigError(f"config {path} does not exist; the recipes are in configs/")
    try:
        cfg = Config.fromfile(path)
        dict(cfg.items())  # Imports of a config are lazy: this makes every one of them happen, and fail, here.
    except Exception as error:  # A config is a Python file: whatever it raises is the user's to read.
        raise ConfigError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error
    for key in options or {}:
        _check_option(cfg, key)
    if options:
        cfg.merge_from_dict(dict(options))
    return cfg


def check_config(cfg: Config) -> None:
    """Raises on the first setting that wouldn't do what it says.

    Raises:
        ConfigError: A part is missing, a type can't be imported or doesn't know a keyword, a path doesn't exist.
    """
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if key not in cfg:
            raise ConfigError(f"the config has no {key!r}; compare with configs/pretrain_mlp.py")
    for key_path, node in typed_nodes(cfg.to_dict()):
        _check_keywords(key_path, node)
    base = cfg.model.get("base")
    if base is not None:
        check_base(base)
    for key_path, node in typed_nodes(cfg.train_dataloader.to_dict(), "train_dataloader"):
        _check_data_paths(key_path, node)


def check_base(base: str) -> None:
    """Raises where ``base`` isn't an official directory."""
    if not Path(base).is_dir():
        raise ConfigError(
            f"model.base={base!r}: no such directory; assemble one with "
            f"python tools/build_base_model.py --vision DIR --llm DIR --out {base}"
        )
    if not (Path(base) / "config.json").is_file():
        raise ConfigError(f"model.base={base!r} holds no config.json, so it is not an official model directory")


def typed_nodes(node: Any, key_path: str = "") -> Iterator[tuple[str, dict]]:
    """Every ``dict(type=...)`` below ``node`` with its path, e.g. ``train_dataloader.dataset``."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield key_path, dict(node)
        for key, value in node.items():
            yield from typed_nodes(value, f"{key_path}.{key}" if key_path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from typed_nodes(value, f"{key_path}[{index}]")


def resolve_type(value: Any) -> Any:
    """The class or function that a ``type`` means: itself, a registry name, or a dotted path; None if unknown."""
    if not isinstance(value, str):
        return value
    from mmengine.utils.misc import get_object_from_string

    if "." in value:
        return get_object_from_string(value)
    return next((r.module_dict[value] for r in _all_registries() if value in r.module_dict), None)


def _all_registries():
    import mmengine.registry as registries

    return [item for item in vars(registries).values() if isinstance(item, registries.Registry)]


def _check_keywords(key_path: str, node: dict) -> None:
    target = resolve_type(node["type"])
    if target is None or not callable(target):
        raise ConfigError(f"{key_path}.type={node['type']!r} is not a known class; import it in the config and name it")
    role = key_path.rsplit(".", 1)[-1].split("[")[0]
    known, takes_any = _keywords(target)
    known |= BUILT_WITH.get(role, set())
    for key in node:
        if key == "type" or key in known or (takes_any and not _is_ours(target)):
            continue
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"{key_path}.{key}: {_name(target)} has no setting {key!r}; {hint}")


def _keywords(target: Any) -> tuple[set[str], bool]:
    """Parameter names that ``target`` takes, those of its bases included where it passes ``**kwargs`` on."""
    known: set[str] = set()
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # Built without a signature (C code): nothing to compare with.
            return known, True
        known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return known, False
    return known, True


def _is_ours(target: Any) -> bool:
    return getattr(target, "__module__", "").startswith("xtuner_plugins.")


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _check_option(cfg: Config, key: str) -> None:
    """A ``--cfg-options`` key must reach something that is read: a runner key, at a path that exists or can be set."""
    top = key.split(".")[0]
    if top in RUNNER_KEYS:
        return
    if "." not in key and key in cfg:
        raise ConfigError(
            f"--cfg-options {key}=...: the config's wiring has already used {key}, so this would change nothing; "
            f"edit the config, or name the place that reads it (e.g. optim_wrapper.optimizer.lr)"
        )
    close = difflib.get_close_matches(top, RUNNER_KEYS, n=1)
    raise ConfigError(
        f"--cfg-options {key}: nothing reads {top!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    )


def _check_data_paths(key_path: str, node: dict) -> None:
    for setting, is_right, kind in (
        ("data_paths", Path.is_file, "file"),
        ("image_folders", Path.is_dir, "folder"),
    ):
        values = node.get(setting) or []
        for value in [values] if isinstance(values, str) else values:
            if isinstance(value, str) and not is_right(Path(value)):
                raise ConfigError(f"{key_path}.{setting}: {kind} {value} does not exist")
