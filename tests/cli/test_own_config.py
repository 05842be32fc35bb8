"""Configs listed, printed, and written outside the repository: complete, tidy, and they train."""

import re

import pytest

from tests.conftest import ROOT
from tests.small_data import write_dataset
from tools import configs as tool
from xtuner_plugins.engine.check.build import check_config
from xtuner_plugins.settings import labels_of, leaves, read_config


def test_every_config_is_listed_with_its_figures(tmp_path, monkeypatch, capsys):
    def listed(*words):
        assert tool.main(list(words)) == 0
        blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
        return {name: dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines) for name, *lines in blocks}

    monkeypatch.chdir(tmp_path)  # where no quick start has left its models
    found = listed()
    assert set(found) == set(leaves())
    for name, rows in found.items():
        assert rows["trains"] == labels_of(leaves()[name])["trains"]
        assert 0 < int(rows["each GPU, GiB"]) < 80 if rows.get("family") != "toy" else "each GPU, GiB" not in rows
    assert found["llava_qwen2_5_3b_lora_frozen_projector"]["parameters trained"] == "239,468,544"
    toys = {name for name in leaves() if leaves()[name].parent.name == "toy"}
    both = listed("--family", "toy", "--stage", "lora")
    assert set(both) == {name for name in toys if "lora" in name.split("_")} != toys


@pytest.fixture
def write(toy_base, tmp_path, monkeypatch, capsys):
    """write(leaf, *words) -> (status, stdout, stderr) of writing mine.py in a folder whose name is no module."""
    data, images = write_dataset(tmp_path / "räume", num_samples=40)
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path / "my-run")

    def call(leaf, *words, base=toy_base):
        command = [leaf, "--write", "mine.py", "--base", base, "--data", data, "--images", images, *words]
        try:
            status = tool.main(list(map(str, command)))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    call.data, call.images, call.path = str(data), str(images), tmp_path / "my-run/mine.py"
    return call


def test_settings_come_first_with_their_keys(capsys):
    assert tool.main(["toy_finetune_lora", "--set", "lr=5e-5", "--cfg-options", "log_level=DEBUG"]) == 0
    settings, resolved = capsys.readouterr().out.split("# ---- Resolved\n")
    assert "lr = 5e-05  # optim_wrapper.optimizer.lr: learning rate" in settings
    assert "max_tiles = 6  # train_dataloader.dataset.max_tiles: + thumbnail\n" in settings
    assert "\npack_tokens  # train_dataloader.batch_sampler.max_tokens: " in settings  # without a value here
    names = {}
    exec(resolved, names)  # MMEngine prints a config that could be read again
    assert names["optim_wrapper"]["optimizer"]["lr"] == 5e-5 and names["log_level"] == "DEBUG"


def test_every_leaf_becomes_a_config_of_ones_own(write, toy_base, run_tool):
    """It is short, and what is set takes effect."""
    for name in {path.parent: name for name, path in leaves().items()}.values():  # one of each folder
        status, said, errors = write(name, "--set", "lr=5e-5", "num_workers=0", "--force")
        assert (status, errors) == (0, "")
        mine, theirs, cfg = labels_of(write.path), labels_of(leaves()[name]), read_config(str(write.path))
        launch = said.splitlines()[-1]
        assert f"python {ROOT}/tools/train.py mine.py" in launch and launch == mine["launch"]
        assert ("--deepspeed" in launch) == ("--deepspeed" in theirs["launch"])
        assert launch.split("=")[0] == "NPROC_PER_NODE" or "NPROC" not in theirs["launch"]
        assert mine["starts from"] == str(toy_base) and write.data in mine["data"] and mine["trains"]
        code = [line for line in write.path.read_text().split('"""')[2].splitlines() if line]
        module = ".".join(leaves()[name].relative_to(ROOT / "configs").with_suffix("").parts)
        assert f'["{write.data}"]' in write.path.read_text() or f'    "{write.data}",' in code
        assert len(code) <= 13 and code[2] == f"    from xtp_configs.{module} import *"
        assert (cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.num_workers) == (5e-5, 0)
        assert cfg.model.base == str(toy_base) and cfg.train_dataloader.dataset.data_paths == [write.data]
        ruff = ["-m", "ruff", "format", "--check", "--config", ROOT / "pyproject.toml", write.path]
        assert run_tool(*ruff).returncode == 0, write.path.read_text()


def test_it_passes_the_check_from_anywhere_with_files_that_share_an_image_folder(write, monkeypatch):
    more = ("--data", write.data, "../räume/train.jsonl", "--set", "num_workers=0")
    assert write("toy_finetune_full", *more)[::2] == (0, "")
    monkeypatch.chdir("/")
    check_config(cfg := read_config(str(write.path)))
    assert cfg.train_dataloader.dataset.data_paths == [write.data] * 2
    assert cfg.train_dataloader.dataset.image_folders == [write.images] * 2


def test_a_run_planned_for_one_gpu(write):
    """The docstring describes this run and base, and the launch line starts one process; a release brings its rate."""
    _, said, _ = write("finetune_full", base="models/InternVL3_5-4B")
    assert "lr=2e-05, for InternVL3_5-4B; finetune_full has 4e-05" in said
    assert "optim_wrapper.optimizer.lr = 2e-5  # for this release" in write.path.read_text()
    assert write("finetune_full", "--force", base="models/own")[0] == 0 and "for this" not in write.path.read_text()
    planned = ("--force", "--gpu", "80GB")
    status, said, errors = write("finetune_full", *planned, "--set", "lr=1e-5", base="models/InternVL3_5-4B")
    assert status == 0, errors
    mine, cfg, text = labels_of(write.path), read_config(str(write.path)), write.path.read_text()
    assert mine["title"] == "InternVL3_5-4B, finetune_full, on one GPU." and mine["hardware"] in said
    assert "of 80 GiB planned; 1 steps of 128 samples, at most " in mine["hardware"]
    assert "not run yet" in mine["hardware"] and "\n1 steps are few: " in said
    assert mine["trains"].startswith("projector, LLM: 4,") and mine["frozen"] == "vision encoder"
    assert mine["launch"] == said.splitlines()[-1] == f"python {ROOT}/tools/train.py mine.py"
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.optimizer.lr) == ("AdamW8bit", 1e-5)
    assert "train_dataloader.batch_size = 4  # x 32 accumulation x 1 GPU = 128 samples per step\n" in text
    _, said, _ = write("finetune_qlora", "--gpu", "auto", "--force", base="models/InternVL3_5-1B")
    assert "no GPU was found: on a processor this is a trial" in said
    frozen = "vision encoder, projector, the LLM's own weights, in 4 bits"
    assert labels_of(write.path)["frozen"] == frozen and 'model.dtype = "float32"' in write.path.read_text()


def test_what_can_not_be_is_not_written(write):
    write.path.write_text("kept")
    status, _, errors = write("finetune_lora")
    assert status == 2 and errors == "error: mine.py exists; --force replaces it\n"
    for words, message in (
        ("--set lr=abc", "optim_wrapper.optimizer.lr='abc': build_adamw takes float"),
        ("--family toy", "--family and --stage choose what is listed"),
        ("--images a b", "2 image folders for 1 files; give one for each"),
        ("--base models/InternVL3-8B --gpu 12GB", "the nearest that fits: finetune_qlora with "),
        ("--gpu 4091", "--gpu 4091: give memory as 24GB"),
    ):
        status, _, errors = write("finetune_lora", "--force", *words.split())
        assert status == 2 and message in errors, (words, errors)
        assert write.path.read_text() == "kept"
