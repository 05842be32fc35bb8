"""Imports go down only, as docs/architecture.md draws them: in every file, in functions, and by a name in a string."""

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "xtuner_plugins"
# Bottom first: folders, and files that stand beside them. A file belongs to the longest name that it begins with.
LAYERS = """hub stack errors files ranges dtypes families settings processes html_page weights
    datasets/stores datasets/images datasets/records datasets/text
    datasets/plan datasets export models audit inference evaluation chat_page engine engine/watch engine/run
    engine/hooks engine/check engine/launch planning cli toy""".split()
NAMED = re.compile(r"xtuner_plugins(\.\w+)+")


def layer_of(name: str) -> int:
    """Index of the layer that a file or folder below the package belongs to."""
    return LAYERS.index(max((each for each in LAYERS if f"{name}/".startswith(f"{each}/")), key=len))


def found_at(parts: list[str]) -> str:
    """The file or folder below the package that a dotted name begins with; '' for the package itself."""
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return "/".join(parts[:end])
    return ""


def names_in(path: Path) -> list[tuple[list[str], str | None]]:
    """(dotted name of a module, name taken from it or None) of what a file imports, or names in a string of its own."""
    here, names = path.relative_to(ROOT).parent.parts, []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(alias.name.split("."), None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*here[: len(here) - node.level + 1]] if node.level else []
            module = [*start, *filter(None, (node.module or "").split("."))]
            names += [(module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
            names.append((node.value.split("."), None))
    return [(parts, taken) for parts, taken in names if parts[0] == PACKAGE.name]


def imports() -> set[tuple[str, str]]:
    """(file, file or folder) of every import inside the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        targets = {found_at([*parts[1:], *filter(None, [taken])]) for parts, taken in names_in(path)}
        found |= {(name, target) for target in targets if target and name != "__init__"}
    return found


def test_imports_go_down_only():
    assert {(name, target) for name, target in imports() if layer_of(target) > layer_of(name)} == set()


def test_the_map_is_true():
    """Sizes are within 10 % of the code's, and every room is there."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    wrong, rooms = {}, set()
    for name, shown in re.findall(r"^\| `([\w./]+)` \| ([\d,]+) \|", page, re.MULTILINE):
        place = next(path for path in (PACKAGE / name, ROOT / name) if path.exists())
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        lines = sum(bool(line.strip()) for path in files for line in path.read_text(encoding="utf-8").splitlines())
        rooms.add(name)
        if abs(int(shown.replace(",", "")) - lines) > 0.1 * lines:
            wrong[name] = lines
    assert wrong == {}
    assert {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")} <= rooms
