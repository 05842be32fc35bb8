from tests.conftest import ROOT
from xtuner_plugins.recipes.count import count
from xtuner_plugins.recipes.page import trained_parameters
from xtuner_plugins.recipes.table import RECIPES


def test_the_page_has_every_leaf_but_the_toys():
    found = trained_parameters(ROOT / "docs" / "recipes.md")
    assert set(found) == {recipe.stem for recipe in RECIPES if recipe.folder != "toy"}
    for recipe in RECIPES:
        if recipe.stem in ("finetune_lora", "llava_qwen2_5_3b_full"):
            assert found[recipe.stem] == count(recipe).trained
    assert found == trained_parameters(ROOT / "docs" / "recipes_zh-CN.md")


def test_rows_outside_the_marks_are_not_read(tmp_path):
    row = "| [one](../configs/one.py) | 1,000 | {} | 1.0 GB |\n"
    page = tmp_path / "page.md"
    page.write_text(row.format(1) + "<!-- recipes: begin -->\n" + row.format("1,234") + "<!-- recipes: end -->\n")
    assert trained_parameters(page) == {"one": 1234}
