"""Imports go down only, as docs/architecture.md draws them: in every file, in functions, and by a name in a string."""

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "xtuner_plugins"
# Bottom first: folders, and files that stand beside them. A file belongs to the longest name that it begins with.
LAYERS = """hub data_names ranges families settings processes html_page preprocessing checkpoints fast_tokenizers
    datasets/errors datasets/cache datasets/unused datasets/stores datasets/images datasets/records datasets/text
    datasets/plan datasets datasets/audit models planning inference evaluation serving engine engine/hooks engine/check
    engine/launch engine/prepared cli toy""".split()
# Imports that still go up, by (file, what it imports): each goes with the next work on its room.
UPWARD = {
    ("checkpoints/tokenizer_files", "fast_tokenizers"),
    ("datasets/images/augment", "datasets/records/boxes"),
    ("datasets/images/augment", "datasets/records/records"),
    ("datasets/images/augment", "datasets/text/conversation"),
    ("datasets/images/video", "datasets/records/records"),
    ("datasets/stores/fetch", "datasets/records/opening"),
    ("datasets/stores/stored_images", "datasets/images/archives"),
    ("datasets/stores/stored_images", "datasets/images/media"),
    *(
        ("preprocessing", f"datasets/{each}")
        for each in ("base", "images/resize_rules", "meta_file", "records/opening")
    ),
    ("settings", "engine/prepared"),  # the name that a run writes into its config
}
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


def names_in(path: Path) -> list[list[str]]:
    """Dotted names of the modules that a file imports, or names in a string of its own."""
    here, names = path.relative_to(PACKAGE.parent).parent.parts, []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*here[: len(here) - node.level + 1]] if node.level else []
            names += [[*start, *filter(None, (node.module or "").split(".")), alias.name] for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
            names.append(node.value.split("."))
    return names


def imports() -> set[tuple[str, str]]:
    """(file, file or folder) of every import inside the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        targets = {found_at(parts[1:]) for parts in names_in(path) if parts[0] == PACKAGE.name}
        found |= {(name, target) for target in targets if target and name != "__init__"}
    return found


def test_imports_go_down_only():
    upward = {(name, target) for name, target in imports() if layer_of(target) > layer_of(name)}
    assert upward - UPWARD == set()


def test_every_module_named_by_a_string_is_there():
    missing = set()
    for path in PACKAGE.rglob("*.py"):
        for parts in names_in(path):
            if parts[0] == PACKAGE.name and len(parts) > 1 and not found_at(parts[1:2]):
                missing.add((path.name, ".".join(parts)))
    assert {pair for pair in missing if pair[1] != f"{PACKAGE.name}.__version__"} == set()


def test_the_hub_imports_nothing_of_the_project():
    assert {target for name, target in imports() if name.startswith("hub/") and not target.startswith("hub")} == set()
