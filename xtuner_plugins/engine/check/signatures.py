"""Parameter names of a class or function, read from its source: importing PEFT or transformers takes seconds.

A name is followed from module to module by the ``from ... import`` statements, and by the ``_HOMES`` tables of this
project's packages. Where the source doesn't tell, the answer is None, and the import will.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple


class Parameters(NamedTuple):
    """What a class or function takes.

    Attributes:
        hints: Its parameters with their annotations as text; None without one.
        takes_any: Whether it takes any other keyword.
    """

    hints: dict[str, str | None]
    takes_any: bool


@functools.cache
def parameters(module: str, name: str) -> Parameters | None:
    """As `inspect.signature` would say them, those of bases included where they get them; None where nothing tells."""
    found = _definition(module, name)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node)
    own = next((item for item in node.body if getattr(item, "name", "") == "__init__"), None)
    if own is not None:
        hints, takes_any = _of_function(own)
        if not takes_any:
            return Parameters(hints, False)
    else:
        is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        fields = [item for item in node.body if is_dataclass and isinstance(item, ast.AnnAssign)]
        hints, takes_any = {item.target.id: ast.unparse(item.annotation) for item in fields}, False
    for base in node.bases:
        of_base = parameters(module, base.id) if isinstance(base, ast.Name) and base.id != "object" else None
        if of_base is None:
            if base is node.bases[0] and own is None:
                return None
            continue
        if of_base == ({}, False):  # it has no __init__
            continue
        hints, takes_any = {**of_base.hints, **hints}, of_base.takes_any
        if not takes_any:
            break
    return Parameters(hints, takes_any)


def _of_function(node: ast.FunctionDef) -> Parameters:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    hints = {each.arg: each.annotation and ast.unparse(each.annotation) for each in arguments if each.arg != "self"}
    return Parameters(hints, node.args.kwarg is not None)


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """The module that defines a name which ``module`` gives, and its syntax tree."""
    path = _file(module)
    if path is None:
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(path)):  # what stands at the top comes first
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    return _definition(origin, alias.name)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            homes = ast.literal_eval(node.value)
            if name in homes:
                return _definition(f"{module}.{homes[name]}", name)
    return None


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _file(module: str) -> Path | None:
    root, *rest = module.split(".")
    spec = importlib.util.find_spec(root)  # of a package without parents: imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
