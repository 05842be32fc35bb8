"""README's table of memory is what `tools/plan.py` says."""

import importlib.util
import json

import pytest

from tests.conftest import ROOT
from xtuner_plugins.planning.memory import GIB
from xtuner_plugins.recipes.hardware_table import FOLDER, render_hardware
from xtuner_plugins.recipes.table import RECIPES
from xtuner_plugins.recipes.write import LANDING_PAGES, with_hardware

spec = importlib.util.spec_from_file_location("plan_tool", ROOT / "tools/plan.py")
plan_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plan_tool)


@pytest.mark.parametrize("name, is_chinese", LANDING_PAGES.items())
def test_the_landing_page_has_it(name, is_chinese):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == with_hardware(text, is_chinese), "run tools/write_recipes.py"


def test_a_row_per_model():
    rows = render_hardware().splitlines()[2:]
    bases = list(dict.fromkeys(recipe.base for recipe in RECIPES if recipe.folder == FOLDER))
    assert [row.split(" | ")[0].strip("| ") for row in rows] == bases


@pytest.mark.parametrize(
    "leaf, column, options",
    [
        ("internvl_v3_5_qwen3_8b_qlora_finetune", 1, ["--gpus", "1", "--deepspeed", "none"]),
        ("internvl_v3_5_qwen3_8b_lora_finetune", 2, ["--gpus", "1", "--deepspeed", "none"]),
        ("internvl_v3_5_qwen3_8b_finetune", 3, []),
    ],
)
def test_the_command_says_the_same(leaf, column, options, capsys):
    plan_tool.main([leaf, *options, "--set", "batch_size=1", "--json"])
    total = json.loads(capsys.readouterr().out)["bytes"]["total"]
    (row,) = [line for line in render_hardware().splitlines() if "InternVL3_5-8B" in line]
    assert row.split(" | ")[column].strip("| ").endswith(f" x {total / GIB:.0f} GiB")
