"""Writes a config that takes in one of configs/ and says what differs, for any place on disk."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkout import CONFIGS, ROOT
from ..settings import PACKAGE, ConfigError, labels_of, leaves

WIDTH = 120


class Code(str):
    """A value that is written as it is, e.g. ``dict(type=LoraConfig, r=16)``."""


def derive(
    parent: str, labels: Mapping[str, str | Sequence[str]], changes: Mapping[str, Any], imports: Sequence[str] = ()
) -> str:
    """The text of a config.

    Args:
        parent: Stem of the config that it takes in.
        labels: Of its docstring: ``title``, then e.g. ``data`` and ``launch``; several lines where several are given.
        changes: Keys of the runner with their values.
        imports: Statements that values need.
    """
    module = ".".join((PACKAGE, *leaves()[parent].relative_to(CONFIGS).with_suffix("").parts))
    lines = [f'"""{_quoted(labels["title"])}', ""]
    for label, said in labels.items():
        if label != "title":
            lines += _wrapped(label, [said] if isinstance(said, str) else said)
    lines += ['"""', "", "from mmengine.config import read_base", *imports, ""]
    lines += ["with read_base():", f"    from {module} import *", ""]
    groups: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        at, _, name = key.rpartition(".")
        groups.setdefault(at, {})[name] = value
    for at, values in groups.items():
        lines += _assigned(at, {name: literal(value) for name, value in values.items()})
    return "\n".join(lines) + "\n"


def _assigned(at: str, values: Mapping[str, str]) -> list[str]:
    """Statements that give keys below ``at`` their values."""
    if len(values) == 1:
        ((name, text),) = values.items()
        return [f"{at}.{name} = {text}"]
    line = f"{at}.update({', '.join(f'{name}={text}' for name, text in values.items())})"
    return [line] if len(line) <= WIDTH else [f"{at}.update(", *(f"    {n}={text}," for n, text in values.items()), ")"]


def _wrapped(label: str, said: Sequence[str]) -> list[str]:
    whole = {"width": WIDTH, "subsequent_indent": " " * 16, "break_long_words": False, "break_on_hyphens": False}
    first, *more = map(_quoted, said)
    lines = textwrap.wrap(first, initial_indent=f"{label:<16}", **whole)
    for text in more:
        lines += textwrap.wrap(text, initial_indent=" " * 16, **whole)
    return lines


def _quoted(text: str) -> str:
    """A text as it stands in a docstring."""
    return text.replace("\\", "\\\\").replace('"""', "'''")


def literal(value: Any) -> str:
    """``repr``, with strings quoted as ruff formats them."""
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return repr(value) if '"' in value and "'" not in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(literal, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
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
