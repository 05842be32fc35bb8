"""The plan as a user gets it."""

import json

import pytest

from xtuner_plugins.planning.memory import GIB


def test_help_imports_nothing_large(run_tool):
    done = run_tool("-X", "importtime", "tools/plan.py", "--help")
    assert done.returncode == 0 and "--mfu" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "json" in imported and not {"torch", "transformers", "deepspeed", "mmengine"} & imported


def test_a_recipe_without_its_model(run_tool):
    done = run_tool("tools/plan.py", "finetune_full")
    assert done.returncode == 0, done.stderr
    for words in (
        "2,088,957,440 parameters",
        "Memory of one rank, deepspeed_zero3 on 8 GPUs",
        "optimizer",
        "fragmentation",
        "fits",
        "DDP",
        "deepspeed_zero3_offload",
        "LLM, forward",
        "hours on 8 x H100 (989 TFLOPS each) at 40% of their peak",
    ):
        assert words in done.stdout, words


def test_a_released_model_is_planned_wherever_it_will_lie(run_tool, tmp_path):
    done = run_tool("tools/plan.py", "finetune_lora", "--set", f"base={tmp_path}/models/InternVL3-2B")
    assert done.returncode == 0 and done.stdout.startswith("InternVL3-2B: 2,088,957,440 parameters"), done.stderr


def test_settings_gpus_and_advice_as_json(run_tool):
    words = ["--gpus", "1", "--gpu", "4090", "--deepspeed", "none", "--set", "gradient_checkpointing=False"]
    done = run_tool("tools/plan.py", "finetune_full", *words, "--json")
    assert done.returncode == 1, done.stderr
    plan = json.loads(done.stdout)
    assert plan["gpus"] == 1 and plan["strategy"] == "one process" and plan["fits"] is False
    assert plan["bytes"]["available"] == 24 * GIB < plan["bytes"]["total"] == sum(plan["bytes"]["parts"].values())
    assert plan["bytes"]["strategies"]["one process"] == plan["bytes"]["total"]
    first = plan["advice"][0]
    assert first.startswith("gradient_checkpointing=True saves ") and "of 24.0 GiB" in first
    saved = run_tool("tools/plan.py", "finetune_full", *words[:-2], "--json")
    assert f"{json.loads(saved.stdout)['bytes']['total'] / GIB:.1f} of 24.0 GiB" in first  # what was promised
    assert plan["steps"] == 41563 and plan["seconds"] > 0  # 665,000 samples in steps of 2 x 8, rounded up


@pytest.mark.parametrize(
    "words, message",
    [
        (["finetunefull"], "did you mean finetune_full"),
        (["TMP/folder.py"], "folder.py"),
        (["finetune_full", "--set", "batchsize=2"], "did you mean batch_size?"),
        (["finetune_full", "--set", "max_tiles=300"], "tile limits"),
        (["finetune_full", "--deepspeed", "zero3"], "did you mean deepspeed_zero3?"),
        (
            ["finetune_full", "--set", "base=no/such"],
            "model directory 'no/such' isn't there, and no shipped config",
        ),
        (["finetune_qlora", "--deepspeed", "deepspeed_zero3"], "packed weights can't be partitioned"),
    ],
)
def test_errors_are_one_line(run_tool, words, message, tmp_path):
    (tmp_path / "folder.py").mkdir()
    words = [word.replace("TMP", str(tmp_path)) for word in words]
    done = run_tool("tools/plan.py", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_share_of_the_peak_is_no_percentage(run_tool):
    done = run_tool("tools/plan.py", "finetune_full", "--mfu", "40")
    assert done.returncode == 2 and "--mfu: 40: give a number above 0, at most 1" in done.stderr
