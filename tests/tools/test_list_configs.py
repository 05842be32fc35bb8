import re

import pytest

from tests.conftest import ROOT
from xtuner_plugins.settings import leaves


def rows(run_tool, *words):
    """name -> cells of the printed table."""
    done = run_tool("tools/list_configs.py", *words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    return {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("│").split("│")] for line in lines)}


def test_every_config_has_its_row(run_tool):
    found = rows(run_tool)
    assert set(found) == set(leaves())
    for leaf in leaves().values():
        family = "" if leaf.parent == ROOT / "configs" else str(leaf.parent.relative_to(ROOT / "configs"))
        assert found[leaf.stem][1] == family and all(found[leaf.stem][2:]), found[leaf.stem]
        planned = found[leaf.stem][3]
        assert planned == "-" if family == "toy" else 0 < int(planned) < 80
    assert "projector, LoRA on every linear layer of the LLM" in found["toy_finetune_lora"]


def test_a_family_and_a_stage(run_tool):
    toys = rows(run_tool, "--family", "toy")
    assert toys and set(toys) == {leaf.stem for leaf in leaves().values() if leaf.parent.name == "toy"}
    both = rows(run_tool, "--family", "toy", "--stage", "lora")
    assert set(both) == {name for name in toys if "lora" in name.split("_")} != set(toys)


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_whole_names_and_whole_words(columns, run_tool):
    env = {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm"}
    done = run_tool("tools/list_configs.py", "--family", "llava_clip_qwen2_5", env=env)
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert done.returncode == 0 and max(map(len, text.splitlines())) <= columns
    for words in ("llava_qwen2_5_3b_lora_frozen_projector", "parameters trained", "239,468,544", "hardware"):
        assert words in text, words
    assert ("NPROC_PER_NODE=4 xtuner train" in text) == (columns == 80)
    assert ("start one: python tools/train.py NAME" in text) == (columns == 160)
