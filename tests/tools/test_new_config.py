"""A config of one's own, written outside the repository: complete, tidy, and it trains."""

import os
import subprocess
import sys

import pytest

from tests.configs.test_configs import LEAVES, name
from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.forked import run_forked
from tests.engine.parallel_case import logged, write_dataset
from xtuner_plugins.config_file import load_config
from xtuner_plugins.engine.config_check import check_config
from xtuner_plugins.leaf import Leaf


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data", num_samples=40)


def write(folder, leaf, base, data, *more):
    command = [sys.executable, ROOT / "tools/new_config.py", leaf, "mine.py", "--base", base]
    command += ["--data", data[0], "--images", data[1], *more]
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=HANGS_AFTER, env={**os.environ}
    )


ONE_PER_FOLDER = list({path.parent: path for path in LEAVES}.values())


@pytest.mark.parametrize("leaf", ONE_PER_FOLDER, ids=name)
def test_every_recipe_becomes_a_config_of_ones_own(leaf, toy_base, data, tmp_path):
    done = write(tmp_path, leaf.stem, toy_base, data, "--set", "lr=5e-5", "num_workers=0")
    assert (done.returncode, done.stderr) == (0, "")
    config = tmp_path / "mine.py"
    launch = done.stdout.splitlines()[-1]
    mine, recipe = Leaf.read(config), Leaf.read(leaf)
    assert f"python {ROOT}/tools/train.py mine.py" in launch and launch == mine.labels["launch"]
    assert ("--deepspeed" in launch) == ("--deepspeed" in recipe.labels["launch"])
    assert launch.split("=")[0] == "NPROC_PER_NODE" or "NPROC" not in recipe.labels["launch"]
    assert mine.labels["starts from"] == str(toy_base) and str(data[0]) in mine.labels["data"]
    changed = {key for key, s in mine.settings.items() if s.source != recipe.settings[key].source}
    assert changed <= {"base", "data_paths", "image_folders", "lr", "num_workers"} and "lr" in changed
    for words in (["check", "--ignore", "D"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(config)]
        assert subprocess.run(ruff, capture_output=True, cwd=tmp_path).returncode == 0


def test_it_passes_the_check_and_trains_anywhere(toy_base, data, tmp_path, monkeypatch):
    write(tmp_path, "toy_finetune_full", toy_base, data, "--set", "num_workers=0", "batch_size=4")
    config = tmp_path / "mine.py"
    monkeypatch.chdir("/")
    check_config(load_config(str(config)))
    words = [
        "--work-dir",
        str(tmp_path / "run"),
        "--cfg-options",
        "train_cfg.max_iters=2",
        "default_hooks.logger.interval=1",
    ]
    run = run_forked([str(config), *words], {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / "run")
    assert run.ok, run.output[-3000:]
    assert len(logged(tmp_path / "run", "loss")) == 2 and (tmp_path / "run/iter_2.pth").exists()


def test_several_files_and_the_folder_that_they_share(toy_base, data, tmp_path):
    done = write(tmp_path, "finetune_lora", toy_base, (data[0], data[1]), "--data", data[0], "later.json")
    assert done.returncode == 0 and done.stderr == "warning: later.json does not exist yet\n"
    settings = Leaf.read(tmp_path / "mine.py").settings
    assert settings["data_paths"].value == [str(data[0]), str(tmp_path / "later.json")]
    assert settings["image_folders"].value == [str(data[1])] * 2


def test_validation_data_and_their_folder(toy_base, data, tmp_path):
    done = write(tmp_path, "toy_finetune_lora", toy_base, data, "--val", data[0], tmp_path / "data/train.jsonl")
    assert done.returncode == 0, done.stderr
    settings = Leaf.read(tmp_path / "mine.py").settings
    assert settings["val_data_paths"].value == [str(data[0])] * 2
    assert settings["val_image_folders"].value == [str(data[1])] * 2
    done = write(tmp_path, "toy_finetune_lora", toy_base, data, "--val-images", data[1])
    assert done.returncode == 2 and "--val-images goes with --val" in done.stderr


def test_the_tile_label_follows(toy_base, data, tmp_path):
    write(tmp_path, "finetune_lora", toy_base, data, "--set", "max_tiles=3")
    assert Leaf.read(tmp_path / "mine.py").labels["tiles"].startswith("up to 3 ")


def test_nothing_is_replaced_without_force(toy_base, data, tmp_path):
    (tmp_path / "mine.py").write_text("kept")
    done = write(tmp_path, "finetune_lora", toy_base, data)
    assert done.returncode == 2 and done.stderr == "error: mine.py exists; --force replaces it\n"
    assert (tmp_path / "mine.py").read_text() == "kept"
    assert write(tmp_path, "finetune_lora", toy_base, data, "--force").returncode == 0
    assert (tmp_path / "mine.py").read_text() != "kept"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set", "max_tile=3"], "did you mean max_tiles"),
        (["--set", "num_workers=abc"], "cannot be read: TypeError"),
        (["--images", "a", "b"], "2 image folders for 1 files"),
    ],
)
def test_what_can_not_be_is_not_written(toy_base, data, tmp_path, words, message):
    done = write(tmp_path, "finetune_lora", toy_base, data, *words)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "mine.py").exists()
