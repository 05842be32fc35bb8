"""`configs/` and `docs/recipes.md` are what the table writes: nothing edited by hand, no leaf without a row."""

import re
from pathlib import Path

import pytest

from xtuner_plugins.planning.memory import GIB
from xtuner_plugins.recipes.count import count
from xtuner_plugins.recipes.folders import FOLDERS
from xtuner_plugins.recipes.plan import planned_memory
from xtuner_plugins.recipes.recipe import SETTINGS
from xtuner_plugins.recipes.table import RECIPES
from xtuner_plugins.recipes.write import BEGIN, END, PAGES, _literal, render, render_readme, with_table, write_recipes

ROOT = Path(__file__).resolve().parents[2]


def test_the_leaves_are_what_their_rows_write():
    other = [r.path for r in RECIPES if (ROOT / r.path).read_text(encoding="utf-8") != render(r)]
    assert other == [], "run tools/write_recipes.py"
    assert [recipe.path for recipe in RECIPES if not set(recipe.settings) <= set(SETTINGS)] == []


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name, is_chinese", [("README.md", False), ("README_zh-CN.md", True)])
def test_the_readme_is_what_the_table_writes(folder, name, is_chinese):
    text = (ROOT / "configs" / folder / name).read_text(encoding="utf-8")
    assert text == render_readme(folder, is_chinese), "run tools/write_recipes.py"
    assert {stem for stem in re.findall(r"\]\((\w+)\.py\)", text)} == {r.stem for r in RECIPES if r.folder == folder}


@pytest.mark.parametrize("name, is_chinese", PAGES.items())
def test_the_pages_table_is_what_the_table_writes(name, is_chinese):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == with_table(text, is_chinese), "run tools/write_recipes.py"
    sizes = r"(\S+) \| (\S+) \| (\S+) GB \| (\d+) GiB \| (-|\d+ h, \d+ x \w+)"
    rows = re.findall(rf"^\| \[(\w+)\]\(\.\./(\S+)\) \| {sizes} \|$", text, re.MULTILINE)
    leaves = {recipe.stem: recipe for recipe in RECIPES if recipe.folder != "toy"}
    assert len(rows) == len(leaves) == len({stem for stem, *_ in rows})
    for stem, path, *sizes, memory, time in rows:
        recipe = leaves[stem]
        of = count(recipe)
        assert path == recipe.path
        assert sizes == [f"{of.total:,}", f"{of.trained:,}", f"{of.gigabytes:.1f}"], stem
        assert memory == f"{planned_memory(recipe) / GIB:.0f}" and (time == "-") == (recipe.data.num_samples is None)


def test_only_the_lines_between_the_marks_are_written(tmp_path):
    page = tmp_path / "docs" / "recipes.md"
    page.parent.mkdir()
    page.write_text(f"above\n{BEGIN}old\n{END}below\n", encoding="utf-8")
    assert page in write_recipes(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"above\n{BEGIN}| leaf |") and text.endswith(f"|\n{END}below\n") and "old" not in text


@pytest.mark.parametrize("text", ["none\n", BEGIN, END, END + BEGIN, BEGIN + END + BEGIN + END])
def test_a_page_without_its_marks_is_refused(text):
    with pytest.raises(ValueError, match=r"^page\.md needs one line <!-- recipes: begin -->"):
        with_table(text, name="page.md")


def test_every_leaf_has_a_row_and_every_folder_a_readme():
    leaves = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts}
    assert leaves == {recipe.path for recipe in RECIPES}
    assert {recipe.folder for recipe in RECIPES} - {"", "toy"} == set(FOLDERS)


def test_writing_again_changes_nothing_and_a_lost_file_comes_back(tmp_path):
    first = write_recipes(tmp_path)
    assert len(first) == len(RECIPES) + 2 * len(FOLDERS) and write_recipes(tmp_path) == []
    lost = tmp_path / RECIPES[0].path
    lost.unlink()
    assert write_recipes(tmp_path) == [lost]


@pytest.mark.parametrize(
    "value, text",
    [
        (1e-6, "1e-6"),
        (2.5e-5, "2.5e-5"),
        (0.0, "0.0"),
        (0.05, "0.05"),
        ("a", '"a"'),
        (r".*\.q", r'r".*\.q"'),
        (["a"], '["a"]'),
    ],
)
def test_literals_are_what_a_person_writes(value, text):
    assert _literal(value) == text and eval(text) == value


def test_what_trains_is_a_setting_of_every_leaf():
    """What a row says of a part is what its leaf sets; a part with adapters or packed weights stays frozen."""
    for recipe in RECIPES:
        check_what_trains(recipe)


def check_what_trains(recipe):
    settings, _, wiring = render(recipe).partition(
        "# ---------------------------------------------------------------- Wiring"
    )
    for part in ("visual_encoder", "projector", "llm"):
        is_free = getattr(recipe, part) != "lora" and part not in recipe.quantized
        assert f"    freeze_{part}={f'freeze_{part}' if is_free else True},\n" in wiring
        assert (f"\nfreeze_{part} = {getattr(recipe, part) != 'all'}" in settings) == is_free
