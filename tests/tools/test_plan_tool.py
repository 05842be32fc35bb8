"""The plan as a user gets it."""

import math
import re

from tests.conftest import ROOT

READMES = ("README.md", "README_zh-CN.md")


SAID = """2,088,957,440 parameters | Memory of one rank, deepspeed_zero3 on 8 x H100 | optimizer | fragmentation | fits
    | DDP | deepspeed_zero3_offload | operations, 10**12: | hours on 8 x H100 (989 TFLOPS each) at 40% of their peak"""


def test_a_recipe_without_its_model(tool, tmp_path):
    said = tool("plan", "finetune_full")[1]
    assert [words.strip() for words in SAID.split("|") if words.strip() not in said] == []
    status, said, _ = tool("plan", "finetune_lora", "--gpu", "24GB", "--set", f"base={tmp_path}/models/InternVL3-2B")
    assert status == 0 and said.startswith("InternVL3-2B: 2,088,957,440 parameters")


def test_a_config_for_a_processor_is_planned_for_this_one(tool, toy_base):
    status, said, _ = tool("plan", "toy_finetune_lora", "--samples", "160", "--set", f"base={toy_base}")
    assert status == 0 and "one process on 1 x this processor" in said and "cards" not in said and "ZeRO" not in said
    assert re.search(r"Python, libraries +│? *1\.0", said) and "CUDA" not in said and " on 1 x this processor (" in said


def test_settings_gpus_and_advice(tool):
    words = ["plan", "finetune_full", "--gpus", "1", "--gpu", "4090", "--deepspeed", "none"]
    status, said, _ = tool(*words, "--set", "gradient_checkpointing=False")
    assert status == 1 and "one process" in said
    assert "\nplanned, not measured: 41,563 steps, " in said  # 665,000 / 2 / 8, up
    promised = re.search(r"\ngradient_checkpointing=True saves .* GiB: ([\d.]+) of 24.0 GiB", said)[1]
    assert re.search(rf"\nsum, .* {promised}\n", tool(*words)[1]), said


def test_errors_are_one_line(tool):
    status, said, error = tool("plan", "finetune_full", "--set", "base=no/such")
    assert (status, said) == (2, "") and error.startswith("error: model directory 'no/such' isn't there")
    assert error.count("\n") == 1
    assert "--mfu: 40: give a number above 0, at most 1\n" in tool("plan", "finetune_full", "--mfu", "40")[2]


def test_the_tables_of_both_readmes_are_planned(tool):
    recipes = ("finetune_qlora", "finetune_lora", "finetune_full")
    tables = [
        re.findall(r"^\| (InternVL3_5\S+) (\|.*\d GiB.*)\|$", (ROOT / name).read_text(), re.M) for name in READMES
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 6
    for base, cells in tables[0]:
        for recipe, (gpus, needed) in zip(recipes, re.findall(r"(\d+) x (\d+) GiB", cells), strict=True):
            _, said, _ = tool("plan", recipe, "--gpus", gpus, "--set", "batch_size=1", f"base=models/{base}")
            total = re.search(r"\nsum, \D*(\d+\.\d)\n", said)[1]
            assert math.ceil(float(total)) == int(needed), (base, recipe)
