"""Imports go down only, as docs/architecture.md draws them."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "xtuner_plugins"
# Bottom first.
ROOMS = (
    "hub",
    "checkpoints",
    "datasets",
    "models",
    "audit",
    "planning",
    "inference",
    "evaluation",
    "serving",
    "engine",
    "cli",
    "toy",
)


def room_of(path: Path) -> str:
    """The first folder below the package; '' for a file beside the rooms."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports from, at its top or inside a function."""
    found, here = set(), path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(here[: len(here) - node.level + 1]) if node.level else []
            base = start + (node.module.split(".") if node.module else [])
            modules = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {module[1] for module in modules if module[0] == PACKAGE.name and len(module) > 1}
    return found & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room):
    files = [path for path in PACKAGE.rglob("*.py") if room_of(path) == room]
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    assert files and {path.name: sorted(up) for path in files if (up := imported_rooms(path) & above)} == {}


def test_every_folder_is_a_room():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(ROOMS)


def test_the_hub_imports_nothing_of_the_project():
    for path in (PACKAGE / "hub").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and (node.level or node.module.split(".")[0] != PACKAGE.name), path
