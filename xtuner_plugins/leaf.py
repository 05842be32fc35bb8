"""The text of a leaf: what its docstring says, its Settings, and the same leaf with other values.

A leaf is a config in configs/: a docstring with labels, imports, ``with read_base()``, a block of *Settings* (plain
assignments) and the *Wiring* that reads them. Changing a setting means changing the text above the wiring and running
all of it; whatever is laid over the config afterwards comes too late. Nothing here imports more than Python's own
library.
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config_file import CONFIGS, RUNNER_KEYS, ConfigError, base_paths
from .literals import holds_dict, read_literal

WIDTH = 120
LABELS = ("trains", "frozen", "starts from", "data", "tiles", "hardware", "launch", "less memory")
_RULE = re.compile(r"# -{3,} *(\w+)$")
_LABEL = re.compile(rf"^({'|'.join(LABELS)})  +(\S.*)$")


@dataclass(frozen=True)
class Setting:
    """One assignment of the Settings block.

    Attributes:
        name: The name that the wiring reads.
        node: The syntax tree of the value.
        source: The text of the value.
        comment: What stands behind it, without ``#``; '' for nothing.
    """

    name: str
    node: ast.expr
    source: str
    comment: str

    @property
    def value(self) -> Any:
        """The value where it is a literal, else None."""
        try:
            return ast.literal_eval(self.node)
        except ValueError:
            return None


@dataclass
class Leaf:
    """A config's text and what is found in it.

    Attributes:
        path: Where it lies; relative bases are looked up from there.
        text: Its source.
        labels: Of the docstring, e.g. ``trains`` and ``launch``.
    """

    path: Path
    text: str
    labels: dict[str, str] = field(init=False)

    def __post_init__(self):
        try:
            self._tree = ast.parse(self.text)
        except SyntaxError as error:
            raise ConfigError(f"config {self.path}:{error.lineno} cannot be read: SyntaxError: {error.msg}") from None
        self.labels = _labels(ast.get_docstring(self._tree) or "")

    @functools.cached_property
    def settings(self) -> dict[str, Setting]:
        """The Settings block; empty in a config that has none."""
        lines = self.text.splitlines()
        rules = {match[1]: number for number, line in enumerate(lines, 1) if (match := _RULE.match(line))}
        first, last = rules.get("Settings", 0), rules.get("Wiring", 0)
        settings = {}
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and first < node.lineno < last and isinstance(node.targets[0], ast.Name):
                name, source = node.targets[0].id, ast.get_source_segment(self.text, node.value)
                comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip().lstrip("# ")
                settings[name] = Setting(name, node.value, source, comment)
        return settings

    @classmethod
    def read(cls, path: str | Path) -> Leaf:
        """Reads a config's text.

        Raises:
            ConfigError: It is no Python.
        """
        return cls(Path(path), Path(path).read_text(encoding="utf-8"))

    def changed(self, pairs: Sequence[str]) -> Leaf:
        """The leaf with other values in its Settings; comments stay.

        Args:
            pairs: ``KEY=VALUE`` each. A value is a Python literal, or a string where it is none; a setting that holds
                a list takes ``a,b`` too.

        Raises:
            ConfigError: A pair without ``=``, a name that is no setting, a dict with a mistake in it, or a config
                without settings.
        """
        wanted = dict(self._pair(pair) for pair in pairs)
        lines = self.text.encode().splitlines(keepends=True)  # the tree counts columns in bytes
        for name in sorted(wanted, key=lambda name: -self.settings[name].node.lineno):
            node = self.settings[name].node
            start, end = node.lineno - 1, node.end_lineno - 1
            before, after = lines[start][: node.col_offset].decode(), lines[end][node.end_col_offset :].decode()
            lines[start : end + 1] = [(before + _fitted(wanted[name], len(before + after)) + after).encode()]
        return Leaf(self.path, b"".join(lines).decode())

    def _pair(self, pair: str) -> tuple[str, str]:
        """(name, source text of the value) of ``KEY=VALUE``."""
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write KEY=VALUE, with no space around the =")
        if name in self.settings:
            try:
                return name, _source(text.strip(), self.settings[name].value)
            except ValueError as error:
                raise ConfigError(f"--set {pair}: {error}; write a Python literal in quotes") from None
        if name.split(".")[0] in RUNNER_KEYS:
            raise ConfigError(f"--set {name}: this is a key of the runner; use --cfg-options {pair}")
        if not self.settings:
            raise ConfigError(f"--set {name}: {self.path} has no block of Settings; use --cfg-options, or edit it")
        close = difflib.get_close_matches(name, self.settings, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(self.settings)}"
        raise ConfigError(f"--set {name}: {self.path} has no such setting; {hint}")

    def labelled(self, labels: dict[str, str]) -> Leaf:
        """The leaf with other words behind some labels of its docstring."""
        first = self._tree.body[0]
        lines, changed, skips = self.text.splitlines(), [], False
        start, *rest = lines[first.lineno - 1 : first.end_lineno]
        end = rest.pop() if rest else None  # the quotes, which aren't indented
        for line in [start, *textwrap.dedent("\n".join(rest)).split("\n"), *([] if end is None else [end])]:
            if skips and line.startswith(" "):
                continue  # goes on with what was replaced
            match = _LABEL.match(line)
            skips = match is not None and match[1] in labels
            changed += _wrapped(match[1], labels[match[1]]) if skips else [line]
        lines[first.lineno - 1 : first.end_lineno] = changed
        return Leaf(self.path, "\n".join(lines) + "\n")

    def standalone(self, *, in_checkout: bool = True) -> str:
        """The same config as one text that takes in no other file: its bases' text stands in it.

        Args:
            in_checkout: Whether ruff will see this project as the file's own one, whose imports are set apart.
        """
        parts = _Parts(self)
        if not parts.bases:
            return self.text
        runtime, names, imports = [], set(), list(parts.imports)
        for path in parts.bases:
            base = _Parts(Leaf(path, Leaf.read(path).standalone()))
            runtime.append(base.body)
            imports += base.imports
            names |= {target.id for target in ast.walk(base.tree) if _is_stored(target)}
        rule = "# " + "-" * 64
        body = re.sub(r"  # noqa: F40[35]$", "", _without_attributes(parts.body, names), flags=re.MULTILINE)
        blocks = [parts.doc, _sorted_imports(imports, in_checkout), f"{rule} Runtime\n" + "\n\n".join(runtime), body]
        return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


class _Parts:
    """A config's text taken apart: docstring, imports, files that it takes in, and the rest."""

    def __init__(self, leaf: Leaf):
        self.tree = ast.parse(leaf.text)
        self.imports: list[ast.stmt] = []
        self.bases: list[Path] = []
        self.doc = ""
        lines = leaf.text.splitlines()
        taken: set[int] = set()
        for number, node in enumerate(self.tree.body):
            span = range(node.lineno - 1, node.end_lineno)
            if number == 0 and ast.get_docstring(self.tree) is not None:
                self.doc = "\n".join(lines[line] for line in span)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                if getattr(node, "module", None) != "mmengine.config":
                    self.imports.append(node)
            elif isinstance(node, ast.With):
                self.bases += base_paths(leaf.path, node)
            else:
                continue
            taken |= set(span)
        self.body = "\n".join(line for number, line in enumerate(lines) if number not in taken).strip("\n")


def _without_attributes(text: str, names: set[str]) -> str:
    """``default_hooks.checkpoint.update(...)`` as ``default_hooks["checkpoint"].update(...)``.

    MMEngine gives what a base assigns as a dict with attributes; within one file it is a plain one.
    """
    lines = text.encode().splitlines(keepends=True)
    tree = ast.parse(text)
    methods = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and id(node) not in methods and _root(node) in names
    ]
    for node in sorted(found, key=lambda node: (-node.end_lineno, -node.end_col_offset)):
        line, start, end = node.end_lineno - 1, node.value.end_col_offset, node.end_col_offset
        lines[line] = lines[line][:start] + f'["{node.attr}"]'.encode() + lines[line][end:]
    return b"".join(lines).decode()


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _sorted_imports(nodes: Sequence[ast.stmt], in_checkout: bool) -> str:
    """The imports of several files as one block, in the order that ruff's isort rules want."""
    plain: dict[str, set[str]] = {}
    members: dict[str, set[tuple[str, str | None]]] = {}
    for node in nodes:
        for alias in node.names:
            if isinstance(node, ast.Import):
                plain.setdefault(alias.name, set()).add(f"import {alias.name}" + _as(alias.asname))
            else:
                members.setdefault(node.module, set()).add((alias.name, alias.asname))
    own = __package__ if in_checkout else None
    sections: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for module in sorted(plain, key=str.casefold):
        sections[_section(module, own)] += sorted(plain[module])
    for module in sorted(members, key=str.casefold):
        names = [name + _as(other) for name, other in sorted(members[module], key=_member_order)]
        line = f"from {module} import {', '.join(names)}"
        if len(line) > WIDTH:
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
        sections[_section(module, own)].append(line)
    return "\n\n".join("\n".join(lines) for lines in sections.values() if lines)


def _as(other: str | None) -> str:
    return f" as {other}" if other else ""


def _section(module: str, own: str | None) -> int:
    root = module.split(".")[0]
    return 0 if root in sys.stdlib_module_names else 2 if root == own else 1


def _member_order(member: tuple[str, str | None]) -> tuple:
    name = member[0]
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name.casefold()


def _labels(doc: str) -> dict[str, str]:
    found: dict[str, str] = {}
    label = None
    for line in doc.splitlines():
        if match := _LABEL.match(line):
            label = match[1]
            found[label] = " ".join(match[2].split())  # a backslash at a line's end leaves its indentation
        elif label and line.startswith(" "):
            found[label] += " " + " ".join(line.split())
        else:
            label = None
    return found


def _wrapped(label: str, words: str) -> list[str]:
    whole = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(words, WIDTH, initial_indent=f"{label:<16}", subsequent_indent=" " * 16, **whole)


def _source(text: str, present: Any) -> str:
    """The source text of a value given on the command line, for a setting that now holds ``present``.

    Raises:
        ValueError: It holds a dict, but is no literal.
    """
    try:
        value = read_literal(text) if holds_dict(text) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if holds_dict(text):
            raise
        value = text
    if isinstance(present, (list, tuple)):
        if isinstance(value, str):
            value = list(_items(value))
        value = type(present)(value) if isinstance(value, (list, tuple)) else type(present)([value])
    return text.lower() if isinstance(value, (int, float)) and not isinstance(value, bool) else literal(value)


def _items(text: str) -> Iterator[Any]:
    """The members of ``a,b`` or ``[a,b]``."""
    for word in text.strip("[]()").split(","):
        word = word.strip()
        if word:
            try:
                yield ast.literal_eval(word)
            except (ValueError, SyntaxError):
                yield word


def check_out(out: Path, force: bool) -> None:
    """Raises `ConfigError` where no config may be written: no ``.py``, or a file that exists (without `force`)."""
    if out.suffix != ".py":
        raise ConfigError(f"{out}: a config is a Python file; name it {out.with_suffix('.py')}")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; --force replaces it")


def launch_line(recipes: str, out: Path) -> str:
    """The recipe's own launch line (number of processes, ``--deepspeed``) for another config."""
    train = CONFIGS.parent / "tools" / "train.py"
    here = str(train.relative_to(Path.cwd())) if train.is_relative_to(Path.cwd()) else str(train)
    found = re.match(r"(?P<before>.*?)(?:xtuner train|python \S*train\.py) +\S+(?P<after>.*)", recipes)
    before, after = (found["before"], found["after"]) if found else ("", "")
    return f"{before}python {shlex.quote(here)} {shlex.quote(str(out))}{after}"


def literal(value: Any) -> str:
    """``repr``, with strings quoted as ruff formats them."""
    if isinstance(value, str):
        return repr(value) if '"' in value and "'" not in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(literal, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _fitted(source: str, taken: int) -> str:
    """A value on one line, or a list with one member per line where it wouldn't fit."""
    if taken + len(source) <= WIDTH or source[0] not in "[(":
        return source
    members = [literal(member) for member in ast.literal_eval(source)]
    return source[0] + "\n" + "".join(f"    {member},\n" for member in members) + source[-1]
