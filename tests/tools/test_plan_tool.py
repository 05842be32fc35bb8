"""The plan as a user gets it."""

import math
import re
import runpy

import pytest

from tests.conftest import ROOT

READMES = ("README.md", "README_zh-CN.md")


@pytest.fixture
def plan(capsys):
    """plan(*words) -> (status, lines of stdout, lines of stderr), in this process."""
    main = runpy.run_path(str(ROOT / "tools/plan.py"))["main"]

    def call(*words):
        try:
            status = main(list(words))
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return call


SAID = """2,088,957,440 parameters | Memory of one rank, deepspeed_zero3 on 8 x H100 | optimizer | fragmentation | fits
    | DDP | deepspeed_zero3_offload | operations, 10**12: | hours on 8 x H100 (989 TFLOPS each) at 40% of their peak"""


def test_a_recipe_without_its_model(plan, tmp_path):
    said = "\n".join(plan("finetune_full")[1])
    assert [words.strip() for words in SAID.split("|") if words.strip() not in said] == []
    status, lines, _ = plan("finetune_lora", "--gpu", "24GB", "--set", f"base={tmp_path}/models/InternVL3-2B")
    assert status == 0 and lines[0].startswith("InternVL3-2B: 2,088,957,440 parameters")


def test_a_config_for_a_processor_is_planned_for_this_one(plan, toy_base):
    status, lines, _ = plan("toy_finetune_lora", "--samples", "160", "--set", f"base={toy_base}")
    said = "\n".join(lines)
    assert status == 0 and "one process on 1 x this processor" in said and "cards" not in said and "ZeRO" not in said
    assert re.search(r"Python, libraries +│? *1\.0", said) and "CUDA" not in said and " on 1 x this processor (" in said


def test_settings_gpus_and_advice(plan):
    words = ["finetune_full", "--gpus", "1", "--gpu", "4090", "--deepspeed", "none"]
    status, lines, _ = plan(*words, "--set", "gradient_checkpointing=False")
    (advice,) = [line for line in lines if line.startswith("gradient_checkpointing=True saves ")]
    assert status == 1 and any("one process" in line for line in lines)
    assert any(line.startswith("planned, not measured: 41,563 steps, ") for line in lines)  # 665,000 / 2 / 8, up
    promised = re.search(r"([\d.]+) of 24.0 GiB", advice)[1]
    assert any(promised in line for line in plan(*words)[1] if "sum" in line.lower() or "total" in line.lower()), advice


def test_errors_are_one_line(plan):
    status, lines, (error,) = plan("finetune_full", "--set", "base=no/such")
    assert (status, lines) == (2, []) and error.startswith("error: model directory 'no/such' isn't there")
    assert "--mfu: 40: give a number above 0, at most 1" in plan("finetune_full", "--mfu", "40")[2][-1]


def test_the_tables_of_both_readmes_are_planned(plan):
    recipes = ("finetune_qlora", "finetune_lora", "finetune_full")
    tables = [
        re.findall(r"^\| (InternVL3_5\S+) (\|.*\d GiB.*)\|$", (ROOT / name).read_text(), re.M) for name in READMES
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 6
    for base, cells in tables[0]:
        for recipe, (gpus, needed) in zip(recipes, re.findall(r"(\d+) x (\d+) GiB", cells), strict=True):
            _, lines, _ = plan(recipe, "--gpus", gpus, "--set", "batch_size=1", f"base=models/{base}")
            total = next(line for line in lines if "sum, " in line)
            assert math.ceil(float(re.search(r"(\d+\.\d)", total)[1])) == int(needed), (base, recipe)
