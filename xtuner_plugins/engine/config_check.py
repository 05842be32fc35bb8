"""Checks a training config before any weight is read: unknown settings, missing files, values that can't be.

MMEngine finds a misspelled keyword only when it builds the object, minutes later and with a traceback. Here every
``dict(type=...)`` is bound to the signature of its type, and then the parts themselves are built (see `dry_run`).
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkout import CONFIGS
from ..data_names import is_url, names_data, names_images
from ..ranges import RangeError, check_store_url
from ..settings import ConfigError, labels_of, leaves, typed_nodes, validation_settings
from . import register_all
from .run_length import check_length
from .text_check import check_known, check_spelling, check_values, check_vision

# MMEngine's runner, and with it DeepSpeed and transformers, takes seconds to import: what needs it imports it.


def check_config(cfg: Config) -> None:
    """Raises on the first setting that wouldn't do what it says.

    Raises:
        ConfigError: A part is missing, a type can't be imported or doesn't know a keyword, a path doesn't exist, or
            a value is of another type than its parameter or refused by the part itself.
    """
    from .dry_run import build_parts

    register_all()
    _check_whole(cfg)
    for key_path, node in typed_nodes(cfg.to_dict()):
        _check_keywords(key_path, node)
    check_text(cfg)
    _check_randomness(cfg.get("randomness") or {})
    build_parts(cfg)


def check_text(cfg: Config) -> None:
    """Raises where base or data aren't there, or a value is out of its range; imports nothing.

    Raises:
        ConfigError: A part of the config is missing, a path doesn't exist, a keyword that its type doesn't know, a
            length that isn't above 0, or a value that is out of its range.
    """
    _check_whole(cfg)
    check_spelling(cfg)
    base = cfg.model.get("base")
    if base is not None:
        check_base(base, cfg.filename)
    for key_path, node in typed_nodes(cfg.train_dataloader.to_dict(), "train_dataloader"):
        _check_data_paths(f"{key_path}.", node)
    shared = (cfg.train_dataloader.get("dataset") or {}).get("backend_args")
    _check_data_paths("val_", validation_settings(cfg._to_lazy_dict()), shared)
    length = [cfg.train_cfg.get(key) for key in ("max_iters", "max_epochs")]
    if all(value is None or type(value) in (int, float) for value in length):
        try:
            check_length(*length)
        except ValueError as error:
            raise ConfigError(f"train_cfg: {error}") from None
    check_values(cfg._to_lazy_dict())


def check_early(cfg: Config) -> None:
    """Checks what needs no MMEngine runner: optimizer, loader, room for tiles.

    All of it is checked again by `check_config`, which takes seconds to import what it needs.

    Raises:
        ConfigError: As `check_config`.
    """
    from .dry_run import build_loader_early, build_optimizer_early

    nodes = dict(typed_nodes(cfg.to_dict()))
    builds = {
        "train_dataloader.dataset": lambda: build_loader_early(cfg.train_dataloader),
        # After the loader: an optimizer that is right makes PyTorch import its compiler.
        "optim_wrapper.optimizer": lambda: build_optimizer_early(cfg.optim_wrapper.optimizer),
    }
    # What `check_config` will say of a type that can't be imported isn't said here.
    known = [key for key in builds if key in nodes and resolve_type(nodes[key]["type"]) is not None]
    for key in reversed(known):
        _check_keywords(key, nodes[key])
    for key in known:
        builds[key]()


def _check_whole(cfg: Config) -> None:
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if key not in cfg:
            raise ConfigError(f"the config has no {key!r}; compare with configs/pretrain_mlp.py")


def missing_base(base: str, config: str | None) -> str:
    """How to get a base that isn't there: as the config's docstring says, else by what its path looks like."""
    label = labels_of(config).get("starts from", "") if config and Path(config).suffix == ".py" else ""
    named, _, command = label.partition(":")
    command = command.strip().replace(" python ", " && python ")
    words = named.split(",")[0].split()
    is_named = bool(words) and os.path.normpath(words[0]) == os.path.normpath(base)
    if is_named and command:
        return f"{'export the earlier stage' if 'export' in named else 'make it'}: {command}"
    if "exports" in Path(base).parts or (is_named and "exported" in named):
        stage = leaves().get(Path(base).name)
        earlier = os.path.relpath(stage, CONFIGS.parent) if stage else "CONFIG"
        return f"export the earlier stage: python tools/convert_to_official.py {earlier} CHECKPOINT {base}"
    return (
        f"assemble one with python tools/build_base_model.py --vision DIR --llm DIR --out {base}, or download a "
        f"released one with hf download ORG/MODEL --local-dir {base}"
    )


def check_base(base: str, config: str | None = None) -> None:
    """Raises where ``base`` isn't an official directory; ``config`` is the file whose docstring says how to get it."""
    if not Path(base).is_dir():
        raise ConfigError(f"model.base={base!r}: no such directory; {missing_base(base, config)}")
    if not (Path(base) / "config.json").is_file():
        raise ConfigError(f"model.base={base!r} holds no config.json, so it is not an official model directory")
    if not any((Path(base) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ConfigError(f"model.base={base!r} holds no tokenizer (no tokenizer.json, no tokenizer_config.json)")
    check_vision(base)


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
    known, takes_any = _keywords(target)
    if not takes_any or _is_ours(target):
        check_known(key_path, node, known, _name(target))
    for key, hint in _hints(target).items():
        if key in node:
            _check_type(f"{key_path}.{key}", node[key], hint, _name(target))


def _hints(target: Any) -> dict[str, Any]:
    """Types of the parameters of ``target``, of its bases too, as their signatures state them."""
    hints: dict[str, Any] = {}
    for owner in reversed(target.__mro__) if inspect.isclass(target) else [target]:
        function = vars(owner).get("__init__") if inspect.isclass(target) else owner
        for name, hint in getattr(function, "__annotations__", {}).items():
            try:
                hints[name] = eval(hint, vars(sys.modules[owner.__module__])) if isinstance(hint, str) else hint
            except (NameError, TypeError, AttributeError):  # It names what only type checkers import.
                hints.pop(name, None)
    return hints


def _check_type(key_path: str, value: Any, hint: Any, owner: str) -> None:
    """Raises where a plain value is of another type than its parameter (``lr='abc'``, ``batch_size=0.5``)."""
    from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    if not isinstance(value, (str, bool, int, float)):
        return
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticSchemaGenerationError, PydanticUserError):  # Not a type that values are checked against.
        try:
            adapter = TypeAdapter(hint)
        except (PydanticSchemaGenerationError, PydanticUserError):
            return
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        wanted = " or ".join(dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors()))
        raise ConfigError(f"{key_path}={value!r}: {owner} wants {wanted}") from None


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
    made_by_new = inspect.isclass(target) and any("__new__" in vars(cls) for cls in target.__mro__[:-1])
    return known, bool(functions) or made_by_new


def _is_ours(target: Any) -> bool:
    return getattr(target, "__module__", "").startswith("xtuner_plugins.")


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _check_randomness(settings: Mapping[str, Any]) -> None:
    from mmengine.runner import Runner

    known = set(inspect.signature(Runner.set_randomness).parameters) - {"self"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"randomness.{key}: nothing reads {key!r}; known: {', '.join(sorted(known))}")


def _check_data_paths(prefix: str, node: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> None:
    """Raises where a path isn't there, or a URL is of a kind that isn't read; ``shared`` holds for all files."""
    own = node.get("dataset_settings")
    of_files = [each or {} for each in (own if isinstance(own, (list, tuple)) else [own])]
    options = [each.get("backend_args") or {} for each in (node, *of_files) if isinstance(each, Mapping)]
    through = next((each for each in (*options, shared or {}) if isinstance(each, Mapping) and "backend" in each), None)
    for setting, is_right, kind in (
        ("data_paths", names_data, "file"),
        ("image_folders", names_images, "folder"),
    ):
        values = node.get(setting) or []
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str) or (through is not None and setting == "image_folders"):
                continue  # only MMEngine's backend knows what its prefix means
            if is_url(value):
                try:
                    check_store_url(value, through)
                except RangeError as error:
                    raise ConfigError(f"{prefix}{setting}: {error}") from None
            if not is_right(value):
                raise ConfigError(f"{prefix}{setting}: {kind} {value} does not exist")
