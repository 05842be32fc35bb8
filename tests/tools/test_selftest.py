"""The self-test as users run it; with an engine that is broken on purpose it must fail."""

import re

import pytest

from xtuner_plugins.toy.small_data import write_dataset

# Patches a module of the project as soon as it is imported, in this process and every forked one.
SITE = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def changed(module):
            run(module)
            exec({change!r}, module.__dict__)
        spec.loader.exec_module = changed
        return spec

sys.meta_path.insert(0, Finder())
"""


def verdicts(done):
    """Verdict of each row by its name."""
    rows = re.findall(r"^(pass|FAIL|skipped) +(.+?)  +\d+\.\d  ", done.stdout, re.MULTILINE)
    return {name: verdict for verdict, name in rows}


def broken(folder, module, change):
    """The environment of processes whose module is changed."""
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, change=change))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_recipe_on_its_users_base_and_data(run_tool, toy_base, tmp_path):
    data, images = write_dataset(tmp_path / "data", 40)
    settings = [f"base={toy_base}", f"data_paths={data}", f"image_folders={images}"]
    done = run_tool("tools/selftest.py", "finetune_lora", "--set", *settings, "--strategies", "ddp,zero2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(verdicts(done).values()) == {"pass"} and len(verdicts(done)) == 11
    assert (
        f"the first 24 usable records of {data}" in done.stdout
        and f"configs and tokenizer of {toy_base}" in done.stdout
    )
    assert " own " in done.stdout and done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("internvl_v2_internlm2_2b_qlora_finetune", [], "skipped"),
        ("finetune_packed", [], "pass"),
        ("siglip_pretrain", [], "pass"),
        ("finetune_dpo_lora", [], "pass"),
        ("finetune_mpo_full", [], "skipped"),
        ("finetune_mpo_full", ["--set", "precompute_reference=True"], "pass"),
    ],
)
def test_recipes_whose_base_is_not_there(run_tool, name, settings, expected):
    done = run_tool("tools/selftest.py", name, *settings, "--strategies", "zero3")
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(done)
    assert found.pop("one rank = two ranks, zero3") == found.pop("images on one rank only, zero3") == expected
    assert set(found.values()) == {"pass"} and "toy records" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, change, failing",
    [
        # The loss is divided by the number of micro-batches, not of supervised tokens.
        (
            "xtuner_plugins.engine.steps",
            "batch_weight = lambda batch: 100.0",
            "8 x 1 = 1 x 8",
        ),
        # What is random in a step depends on when the process began.
        ("xtuner_plugins.engine.loops", "seed_step = lambda *args: None", "resumed = uninterrupted"),
    ],
)
def test_a_broken_engine_is_found(run_tool, tmp_path, module, change, failing):
    done = run_tool("tools/selftest.py", "finetune_lora", "--quick", env=broken(tmp_path, module, change))
    found = verdicts(done)
    assert done.returncode == 1 and found[failing] == "FAIL", done.stdout + done.stderr
    assert found["recomputation on = off"] == found["export = live model"] == "pass"


@pytest.mark.parametrize(
    "words, message",
    [
        (["finetune_lorra"], "did you mean finetune_lora"),
        (["finetune_lora", "--strategies", "zero4"], "unknown: zero4"),
        (["finetune_lora", "--set", "base=models/none"], "model directory 'models/none' isn't there"),
        (["finetune_lora", "--set", "lr=abc"], "lr='abc' is no learning rate"),
    ],
)
def test_refusals_are_one_line(run_tool, words, message):
    done = run_tool("tools/selftest.py", *words)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.splitlines()[-1].count("error:") == 1 and "Traceback" not in done.stderr
