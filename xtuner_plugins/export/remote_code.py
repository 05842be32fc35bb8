"""Python files in a model directory: whether files are missing, and whether they are this project's own. Runs none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from ..weights.reading import read_json

# Files whose ``auto_map`` names a directory's own classes.
_NAMING_FILES = ("config.json", "tokenizer_config.json")


def hub_code() -> list[Path]:
    """The files of ``xtuner_plugins/hub`` that an export ships."""
    from .. import hub

    return sorted(p for p in Path(next(iter(hub.__path__))).glob("*.py") if p.name != "__init__.py")


def copy_hub_code(stage: Path) -> None:
    """Copies the hub's code into a directory."""
    for path in hub_code():
        (stage / path.name).write_bytes(path.read_bytes())


def missing_code(directory: Path) -> list[str]:
    """What transformers would miss when it opens a directory with its own code.

    Returns:
        Missing files among the modules that ``auto_map`` names and their relative imports; ``["auto_map"]`` if it names
        no model class.
    """
    config = read_json(directory / "config.json")
    if "AutoModel" not in config.get("auto_map", {}):
        return ["auto_map"]
    waiting = [reference.rpartition("--")[2].partition(".")[0] for reference in _references(directory)]
    seen, missing = set(), []
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = directory / f"{module}.py"
        if path.is_file():
            waiting += _relative_imports(path)
        else:
            missing.append(path.name)
    return sorted(missing)


def _references(directory: Path) -> Iterator[str]:
    """Every ``module.Class`` (or ``organization/repository--module.Class``) in the directory's ``auto_map``s."""
    for name in _NAMING_FILES:
        if (directory / name).is_file():
            for value in read_json(directory / name).get("auto_map", {}).values():
                yield from (item for item in (value if isinstance(value, list) else [value]) if item)


def _relative_imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found += [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
    return found
