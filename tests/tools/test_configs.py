"""Configs listed, printed, and written outside the repository: complete, tidy, and they train."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.forked import run_forked
from tests.engine.parallel_case import logged, write_dataset
from xtuner_plugins.engine.check.build import check_config
from xtuner_plugins.settings import labels_of, leaves, make_reloadable, read_config


def listed(run_tool, *words, **place):
    """name -> label -> text of the printed list."""
    done = run_tool(ROOT / "tools/configs.py", *words, **place)
    assert done.returncode == 0, done.stderr
    blocks = [block.splitlines() for block in done.stdout.strip().split("\n\n")]
    return {name: dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines) for name, *lines in blocks}


def test_every_config_is_listed_with_its_figures(run_tool, tmp_path):
    found = listed(run_tool, cwd=tmp_path)  # where no quick start has left its models
    assert set(found) == set(leaves())
    for name, leaf in leaves().items():
        family = "" if leaf.parent == ROOT / "configs" else str(leaf.parent.relative_to(ROOT / "configs"))
        rows = found[name]
        assert rows.get("family", "") == family and rows["trains"] == labels_of(leaf)["trains"]
        assert "each GPU, GiB" not in rows if family == "toy" else 0 < int(rows["each GPU, GiB"]) < 80
    assert found["llava_qwen2_5_3b_lora_frozen_projector"]["parameters trained"] == "239,468,544"
    both = listed(run_tool, "--family", "toy", "--stage", "lora")
    toys = {leaf.stem for leaf in leaves().values() if leaf.parent.name == "toy"}
    assert set(both) == {name for name in toys if "lora" in name.split("_")} != toys


def test_settings_come_first_with_their_keys(run_tool):
    done = run_tool("tools/configs.py", "toy_finetune_lora", "--set", "lr=5e-5", "--cfg-options", "log_level=DEBUG")
    assert done.returncode == 0, done.stderr
    settings, resolved = done.stdout.split("# ---- Resolved\n")
    assert "lr = 5e-05  # optim_wrapper.optimizer.lr: learning rate" in settings
    assert "max_tiles = 6  # train_dataloader.dataset.max_tiles: + thumbnail\n" in settings
    assert "\npack_tokens  # train_dataloader.batch_sampler.max_tokens: " in settings  # without a value here
    names = {}
    exec(resolved, names)  # MMEngine prints a config that could be read again
    assert names["optim_wrapper"]["optimizer"]["lr"] == 5e-5 and names["log_level"] == "DEBUG"
    assert names["model"]["type"].endswith("VisionLanguageModel")


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data", num_samples=40)


def write(folder, leaf, base, data, *more):
    command = [sys.executable, ROOT / "tools/configs.py", leaf, "--write", "mine.py", "--base", base]
    command += ["--data", data[0], "--images", data[1], *more]
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=HANGS_AFTER, env={**os.environ}
    )


def test_every_leaf_becomes_a_config_of_ones_own(toy_base, data, tmp_path):
    """From a folder whose name is no module; it is short, and what is set takes effect."""
    (tmp_path / "my-run").mkdir()
    for name in {path.parent: name for name, path in leaves().items()}.values():  # one of each folder
        done = write(tmp_path / "my-run", name, toy_base, data, "--set", "lr=5e-5", "num_workers=0", "--force")
        assert (done.returncode, done.stderr) == (0, "")
        path, theirs = tmp_path / "my-run" / "mine.py", labels_of(leaves()[name])
        launch = done.stdout.splitlines()[-1]
        mine, cfg = labels_of(path), read_config(str(path))
        assert f"python {ROOT}/tools/train.py mine.py" in launch and launch == mine["launch"]
        assert ("--deepspeed" in launch) == ("--deepspeed" in theirs["launch"])
        assert launch.split("=")[0] == "NPROC_PER_NODE" or "NPROC" not in theirs["launch"]
        assert mine["starts from"] == str(toy_base) and str(data[0]) in mine["data"] and mine["trains"]
        code = [line for line in path.read_text().split('"""')[2].splitlines() if line]
        assert len(code) <= 13 and code[2] == f"    from xtp_configs{module_of(name)} import *"
        assert (cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.num_workers) == (5e-5, 0)
        assert cfg.model.base == str(toy_base) and cfg.train_dataloader.dataset.data_paths == [str(data[0])]
        for words in (["check", "--ignore", "D,F403,F405"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(path)]
            assert subprocess.run(ruff, capture_output=True, cwd=tmp_path).returncode == 0, path.read_text()


def module_of(name):
    parts = leaves()[name].relative_to(ROOT / "configs").with_suffix("").parts
    return "".join(f".{part}" for part in parts)


def test_it_passes_the_check_and_trains_anywhere(toy_base, data, tmp_path, monkeypatch):
    write(tmp_path, "toy_finetune_full", toy_base, data, "--set", "num_workers=0", "batch_size=4")
    config = tmp_path / "mine.py"
    monkeypatch.chdir("/")
    check_config(read_config(str(config)))
    words = [
        "--work-dir",
        str(tmp_path / "run"),
        "--cfg-options",
        "train_cfg.max_iters=2",
        "default_hooks.logger.interval=1",
    ]
    monkeypatch.chdir(ROOT)
    taken_in = read_config(str(config))
    make_reloadable(taken_in)  # as the launcher hands it to the training processes
    (tmp_path / "resolved.py").write_text(taken_in.pretty_text)
    run = run_forked([str(tmp_path / "resolved.py"), *words], {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / "run")
    assert run.ok, run.output[-3000:]
    assert len(logged(tmp_path / "run", "loss")) == 2 and (tmp_path / "run/iter_2.pth").exists()


def test_several_files_and_the_folder_that_they_share(toy_base, data, tmp_path):
    more = ("--data", data[0], "later.json", "--val", data[0], tmp_path / "data/train.jsonl")
    done = write(tmp_path, "toy_finetune_lora", toy_base, data, *more)
    assert done.returncode == 0 and done.stderr == "warning: later.json does not exist yet\n"
    cfg = read_config(str(tmp_path / "mine.py"))
    dataset, validation = cfg.train_dataloader.dataset, cfg.default_hooks.validation
    assert dataset.data_paths == [str(data[0]), str(tmp_path / "later.json")]
    assert dataset.image_folders == [str(data[1])] * 2
    assert validation.data_paths == [str(data[0])] * 2 and validation.image_folders == [str(data[1])] * 2
    done = write(tmp_path, "toy_finetune_lora", toy_base, data, "--val-images", data[1])
    assert done.returncode == 2 and "--val-images goes with --val" in done.stderr


def test_a_run_planned_for_one_gpu(data, tmp_path):
    """The docstring describes this run and base, and the launch line starts one process."""
    done = write(tmp_path, "finetune_full", "models/InternVL3_5-4B", data, "--gpu", "80GB", "--set", "lr=1e-5")
    assert done.returncode == 0, done.stderr
    mine, cfg = labels_of(tmp_path / "mine.py"), read_config(str(tmp_path / "mine.py"))
    assert mine["title"] == "InternVL3_5-4B, finetune_full, on one GPU." and mine["hardware"] in done.stdout
    assert (
        "of 80 GiB planned; 1 steps of 128 samples, at most " in mine["hardware"] and "not run yet" in mine["hardware"]
    )
    assert "\n1 steps are few: " in done.stdout
    assert mine["trains"].startswith("projector, LLM: 4,") and mine["frozen"] == "vision encoder"
    assert mine["launch"] == done.stdout.splitlines()[-1] == f"python {ROOT}/tools/train.py mine.py"
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.optimizer.lr) == ("AdamW8bit", 1e-5)
    assert "train_dataloader.batch_size = 4  # x 32 accumulation x 1 GPU = 128 samples per step\n" in text_of(tmp_path)
    lora = write(tmp_path, "finetune_qlora", "models/InternVL3_5-1B", data, "--gpu", "auto", "--force")
    assert "no GPU was found: on a processor this is a trial" in lora.stdout
    said = "vision encoder, projector, the LLM's own weights, in 4 bits"
    assert labels_of(tmp_path / "mine.py")["frozen"] == said and 'model.dtype = "float32"' in text_of(tmp_path)


def test_a_released_base_brings_its_rate(tmp_path, data):
    """Unless another one is asked for; a base of one's own keeps the recipe's."""
    done = write(tmp_path, "finetune_full", "models/InternVL3_5-4B", data)
    assert "lr=2e-05, for InternVL3_5-4B; finetune_full has 4e-05" in done.stdout
    assert "optim_wrapper.optimizer.lr = 2e-5  # for this release" in (tmp_path / "mine.py").read_text()
    for base, more in (("models/InternVL3_5-4B", ("--set", "lr=3e-5")), ("models/own", ())):
        assert "for this release" not in write(tmp_path, "finetune_full", base, data, "--force", *more).stdout
        assert "for this release" not in (tmp_path / "mine.py").read_text()


def text_of(folder):
    return (folder / "mine.py").read_text()


def test_nothing_is_replaced_without_force(toy_base, data, tmp_path):
    (tmp_path / "mine.py").write_text("kept")
    done = write(tmp_path, "finetune_lora", toy_base, data)
    assert done.returncode == 2 and done.stderr == "error: mine.py exists; --force replaces it\n"
    assert (tmp_path / "mine.py").read_text() == "kept"
    assert write(tmp_path, "finetune_lora", toy_base, data, "--force").returncode == 0
    assert (tmp_path / "mine.py").read_text() != "kept"


def test_what_can_not_be_is_not_written(toy_base, data, tmp_path):
    for words, message in (
        (["--set", "max_tile=3"], "did you mean max_tiles"),
        (["--set", "lr=abc"], "optim_wrapper.optimizer.lr='abc': build_adamw takes float"),
        (["--set", "num_workers=two"], "num_workers"),
        (["--family", "toy"], "--family and --stage choose what is listed"),
        (["--set", "pack_tokens=4096"], "train_dataloader has no 'batch_sampler'"),
        (["--val", "v", "--images", "a", "b"], "name the folders of its images with --val-images"),
        (["--images", "a", "b"], "2 image folders for 1 files of --data"),
        (["--base", "models/InternVL3-8B", "--gpu", "12GB"], "the nearest that fits: finetune_qlora with "),
        (["--gpu", "4091"], "--gpu 4091: give memory as 24GB"),
    ):
        done = write(tmp_path, "finetune_lora", toy_base, data, *words)
        assert done.returncode == 2 and message in done.stderr, (words, done.stderr)
        assert not (tmp_path / "mine.py").exists()
