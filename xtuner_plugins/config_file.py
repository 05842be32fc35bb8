"""Reads a training config and refuses settings that would have no effect.

The wiring of a config reads the settings above it while the file runs. A setting that is changed afterwards, in a
config derived with ``read_base()`` or with ``--cfg-options``, is not read again. The files are therefore parsed as
syntax trees, which show the keys that each setting goes to.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.config import DELETE_KEY

from .checkout import ROOT

CONFIGS = ROOT / "configs"

# What MMEngine's runners and XTuner's command read at the top level of a config.
RUNNER_KEYS = frozenset(
    """model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr
    optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks data_preprocessor load_from
    resume launcher env_cfg log_processor log_level visualizer default_scope randomness experiment_name cfg
    model_wrapper_cfg find_unused_parameters runner_type strategy compile extra_ckpt sync_bn model_resource
    pretrained_model_name_or_path""".split()
)


class ConfigError(ValueError):
    """A config that can't be trained; the message names the key, the value and the remedy."""


@dataclass(frozen=True)
class Use:
    """A key of the config whose value is computed from a setting, e.g. ``optim_wrapper.optimizer.lr``."""

    key: str
    expression: ast.expr


@dataclass
class ConfigFile:
    """One Python file of a config.

    Attributes:
        path: The file.
        lines: Names assigned at the top level, each with the line of its last assignment.
        uses: For each name that is read, the keys that it goes to.
        read: All names that are read.
        bases: The files imported under ``read_base()``.
    """

    path: Path
    lines: dict[str, int] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    bases: list[ConfigFile] = field(default_factory=list)

    def ancestors(self) -> Iterator[ConfigFile]:
        """All bases, direct and indirect."""
        for base in self.bases:
            yield base
            yield from base.ancestors()


def validation_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the `ValidationHook` among a config's hooks, lazy or imported; empty without one."""
    for hook in (*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or ())):
        kind = hook.get("type") if isinstance(hook, Mapping) else None
        name = getattr(kind, "_imported", None) or getattr(kind, "__name__", kind)
        if isinstance(name, str) and name.rpartition(".")[2] == "ValidationHook":
            return {key: value for key, value in hook.items() if key != "type"}
    return {}


def leaves() -> dict[str, Path]:
    """Every config of the checkout's configs/ by its stem; bases are none."""
    return {path.stem: path for path in sorted(CONFIGS.rglob("*.py")) if "_base_" not in path.parts}


def find_config(name: str) -> str:
    """The path of a config that is given by its path, or by the stem of one in configs/.

    Raises:
        ConfigError: There is none; names those whose names are nearest.
    """
    if Path(name).is_file():
        return name
    known = leaves()
    if name in known:
        path = str(known[name])
        return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path
    close = difflib.get_close_matches(Path(name).stem, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "tools/list_configs.py lists those of configs/"
    raise ConfigError(f"config {name} does not exist; {hint}")


def load_config(path: str, options: Mapping[str, Any] | None = None, text: str | None = None) -> Config:
    """Reads a config, as `read_config` does, and imports all that it names.

    Raises:
        ConfigError: As `read_config`, or an import that fails.
    """
    cfg = read_config(path, options, text)
    import_types(cfg)
    return cfg


def import_types(cfg: Config) -> None:
    """Imports of a config are lazy: this makes every one of them happen, and fail, here.

    Raises:
        ConfigError: One of them fails.
    """
    try:
        dict(cfg.items())
    except Exception as error:
        raise _unreadable(cfg.filename, error) from error


def read_config(path: str, options: Mapping[str, Any] | None = None, text: str | None = None) -> Config:
    """Reads a Python config and lays ``--cfg-options`` over it; imports nothing that the config names.

    Args:
        path: Its path, or the stem of a config in configs/.
        options: Keys of the runner with the values that they shall have.
        text: What to run in place of the file's text. It takes in no other file.

    Raises:
        ConfigError: No such file, a file that doesn't run, or a setting or an option that nothing would read.
    """
    path = find_config(path)
    if text is None:
        cfg = _run_file(path, path)
    else:
        with tempfile.TemporaryDirectory(prefix="config-") as folder:
            changed = Path(folder, Path(path).name)
            changed.write_text(text, encoding="utf-8")
            cfg = _run_file(str(changed), f"{path}, with --set,")
        object.__setattr__(cfg, "_filename", path)
    if options:
        lay_over(cfg, options)
    return cfg


def lay_over(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives keys of a config the values of ``--cfg-options``.

    A dict replaces the value that the config has, like any other value, where MMEngine would merge the two.

    Returns:
        The options with which MMEngine's own ``merge_from_dict`` gives the same config.

    Raises:
        ConfigError: An option that nothing would read, or whose key lies in a value that has no keys.
    """
    files = _files_of(cfg)
    complete = {}
    for key, value in options.items():
        _check_option(cfg, files, key)
        is_there = _check_place(cfg, files, key, value)
        complete[key] = {**value, DELETE_KEY: True} if isinstance(value, dict) and is_there else value
    try:
        cfg.merge_from_dict(copy.deepcopy(complete))  # it takes DELETE_KEY out of what it is given
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"--cfg-options: {_one_line(error)}") from None
    return complete


def _run_file(file: str, path: str) -> Config:
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # A config is a Python file and may raise anything.
        raise _unreadable(path, error) from error
    _check_settings(cfg, _files_of(cfg))
    return cfg


def _unreadable(path: str, error: Exception) -> ConfigError:
    line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
    if "inheritance chain" in str(error):  # MMEngine's two kinds of configs
        problem = "`_base_` can't take in a config that is written with imports, nor stand in one"
        remedy = (
            "derive with `with read_base(): from ... import *` (docs/training.md), or make one with tools/new_config.py"
        )
        return ConfigError(f"config {path} cannot be read: {problem}; {remedy}")
    text = _one_line(error.msg if isinstance(error, SyntaxError) else error)[:300]
    return ConfigError(f"config {path}{line} cannot be read: {type(error).__name__}: {text}")


def _files_of(cfg: Config) -> list[ConfigFile]:
    """The config's file, then its bases; empty for a config that isn't a Python file."""
    if Path(cfg.filename).suffix != ".py":
        return []
    leaf = parse_config(cfg.filename)
    return [leaf, *leaf.ancestors()]


def _check_settings(cfg: Config, files: list[ConfigFile]) -> None:
    """Raises `ConfigError` where a file assigns a name that nothing reads, or that a base has already read.

    Args:
        cfg: As read from its file, without options.
        files: The config's files, see `_files_of`.
    """
    for file in files:
        for name, line in file.lines.items():
            if file.bases and not any(name in other.read for other in files):  # a dumped config keeps settings' names
                _check_known(file, name, line, files)
            for base in file.ancestors():
                _check_override(cfg, file, name, line, base)


def _check_option(cfg: Config, files: list[ConfigFile], key: str) -> None:
    """Raises `ConfigError` where nothing reads a ``--cfg-options`` key, or the wiring has already read it."""
    top = key.split(".")[0]
    if top in RUNNER_KEYS:
        return
    if "." not in key and key in cfg:
        keys = sorted({use.key for file in files for use in file.uses.get(key, ()) if use.key})
        remedy = f"set {' and '.join(keys)} instead, or start with --set {key}=..." if keys else "edit the config"
        raise ConfigError(f"--cfg-options {key}=...: the config's wiring has already read {key}; {remedy}")
    raise ConfigError(f"--cfg-options {key}: nothing reads {top!r}{_suggestion(top, RUNNER_KEYS)}")


def _check_place(cfg: Config, files: list[ConfigFile], key: str, value: Any) -> bool:
    """Whether a config has a ``--cfg-options`` key; raises `ConfigError` where it can't be set."""
    found: Any = cfg._cfg_dict  # read without the imports that getting a lazy value makes
    parts = key.split(".")
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if isinstance(found, dict):
            if part not in found:
                return False
            found = dict.__getitem__(found, part)
        elif isinstance(found, list):
            if not part.isdigit() or int(part) >= len(found):
                problem = f"{above} is a list of {len(found)}, which has no {part!r}"
                raise ConfigError(f"--cfg-options {key}: {problem}; give an index, from 0 on, or the whole list")
            if depth == len(parts) - 1:
                if not isinstance(value, dict) or not isinstance(found[int(part)], dict):
                    raise ConfigError(f"--cfg-options {key}: one value of a list can't be set; give all of {above}")
                return False  # MMEngine merges it, and would keep DELETE_KEY
            found = found[int(part)]
        else:
            rest = ".".join(parts[depth:])
            names = [name for file in files for name, uses in file.uses.items() if _is_given(uses, above)]
            other = f", or with --set {names[0]}=..." if names else ""
            problem = f"{above} is {_shown(found)} in the config and has no {rest!r}"
            whole = f"{above}='{{\"{rest}\": ...}}'" if found is None and "." not in rest else f"{above}=..."
            raise ConfigError(f"--cfg-options {key}: {problem}; give all of it: {whole}{other}")
    return True


def _is_given(uses: list[Use], key: str) -> bool:
    """Whether a setting is the value of a key as it is."""
    return any(use.key == key and isinstance(use.expression, ast.Name) for use in uses)


def _suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise


def parse_config(path: str) -> ConfigFile:
    """The names that a config file and its bases assign and read."""
    file = ConfigFile(Path(path))
    tree = ast.parse(file.path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.With):
            file.bases += [parse_config(str(base)) for base in base_paths(file.path, node)]
            continue
        for target in getattr(node, "targets", None) or [getattr(node, "target", None)]:
            if isinstance(target, ast.Name):
                file.lines[target.id] = node.lineno
        for use, names in _uses(node):
            file.read |= names
            for name in names:
                file.uses.setdefault(name, []).append(use)
    return file


def base_paths(path: Path, node: ast.With) -> Iterator[Path]:
    """The files that a ``with read_base()`` of ``path`` takes in."""
    for statement in node.body:
        if not isinstance(statement, ast.ImportFrom):
            continue
        parts = (statement.module or "").split(".")
        if statement.level:
            base = path.parent.joinpath(*[".."] * (statement.level - 1), *parts).with_suffix(".py")
        else:
            spec = importlib.util.find_spec(parts[0])
            base = Path(spec.origin).parent.joinpath(*parts[1:]).with_suffix(".py") if spec and spec.origin else path
        if base.is_file() and base != path:
            yield base


def _uses(node: ast.stmt) -> Iterator[tuple[Use, set[str]]]:
    """The keys that a statement writes, and the names that each value is computed from."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        call = node.value  # default_hooks.checkpoint.update(interval=save_steps)
        key = _dotted(call.func.value)
        for argument in call.args:
            yield from _keys_of(argument, key)
        for keyword in call.keywords:
            yield from _keys_of(keyword.value, f"{key}.{keyword.arg}" if keyword.arg else key)
        return
    value = getattr(node, "value", None)
    if value is None:  # a loop or a condition, which writes no key
        if names := _names(node):
            yield Use("", ast.Constant(None)), names
        return
    for target in getattr(node, "targets", None) or [getattr(node, "target", None)]:
        yield from _keys_of(value, _dotted(target))


def _keys_of(node: ast.expr, key: str) -> Iterator[tuple[Use, set[str]]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        items = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        items = list(zip(keys, node.values, strict=True))
    elif isinstance(node, (ast.List, ast.Tuple)) and any(isinstance(n, (ast.Call, ast.Dict)) for n in node.elts):
        items = list(enumerate(node.elts))
    else:
        if names := _names(node):
            yield Use(key, node), names
        return
    for name, value in items:
        yield from _keys_of(value, f"{key}.{name}" if name is not None else key)


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _dotted(node: ast.expr | None) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return f"{_dotted(node.value)}.{node.slice.value}"
    return ""


def _check_known(file: ConfigFile, name: str, line: int, files: list[ConfigFile]) -> None:
    if name in RUNNER_KEYS or name.startswith("_"):
        return
    known = RUNNER_KEYS.union(*(other.lines for other in files)) - {name}
    raise ConfigError(f"{file.path}:{line}: nothing reads {name!r}{_suggestion(name, known, '; remove it')}")


def _check_override(cfg: Config, file: ConfigFile, name: str, line: int, base: ConfigFile) -> None:
    if name not in base.lines or name in RUNNER_KEYS:
        return
    stale = [use.key for use in base.uses.get(name, ()) if not _is_up_to_date(cfg, use)]
    if stale:
        where = " and ".join(re.sub(r"\.(\d+)", r"[\1]", key) for key in stale)
        raise ConfigError(
            f"{file.path}:{line}: {name} = {_shown(cfg.get(name))} does nothing: {base.path} has already read its own "
            f"{name} (line {base.lines[name]}); set {where} here instead, or {name} there"
        )


def _is_up_to_date(cfg: Config, use: Use) -> bool:
    """Whether the key's value is what its expression gives for the current settings."""
    found: Any = cfg
    for part in use.key.split("."):
        try:
            found = found[int(part)] if isinstance(found, (list, tuple)) else found[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return True  # the derived config has replaced this part
    try:
        names = {name: cfg[name] for name in _names(use.expression) if name in cfg}
        wanted = eval(compile(ast.Expression(use.expression), "<config>", "eval"), {}, names)
    except Exception:  # it needs more than settings, so there is nothing to compare with
        return True
    return _plain(found) == _plain(wanted)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())
