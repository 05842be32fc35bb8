"""Configs listed, printed, and written outside the repository: complete, tidy, and they train."""

import re

import pytest

from tests.conftest import ROOT
from tests.small_data import write_dataset
from xtuner_plugins.cli import own_config
from xtuner_plugins.engine.check.build import check_config
from xtuner_plugins.settings import labels_of, leaves, read_config


def test_every_config_is_listed_with_its_figures(tmp_path, monkeypatch, tool):
    def listed(*words):
        blocks = [block.splitlines() for block in tool("configs", *words)[1].strip().split("\n\n")]
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
def write(toy_base, tmp_path, monkeypatch, tool):
    """write(leaf, *words) -> (status, stdout, stderr) of writing mine.py in a folder whose name is no module."""
    data, images = write_dataset(tmp_path / "räume", num_samples=40)
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path / "my-run")

    def call(leaf, *words, base=toy_base):
        return tool("configs", leaf, "--write", "mine.py", "--base", base, "--data", data, "--images", images, *words)

    call.data, call.images, call.path = str(data), str(images), tmp_path / "my-run/mine.py"
    return call


def test_settings_come_first_with_their_keys(tool):
    _, said, _ = tool("configs", "toy_finetune_lora", "--set", "lr=5e-5", "--cfg-options", "log_level=DEBUG")
    settings, resolved = said.split("# ---- Resolved\n")
    assert "lr = 5e-05  # optim_wrapper.optimizer.lr: learning rate" in settings
    assert "max_tiles = 6  # train_dataloader.dataset.max_tiles: + thumbnail\n" in settings
    assert "\npack_tokens  # train_dataloader.batch_sampler.max_tokens: " in settings  # without a value here
    names = {}
    exec(resolved, names)  # MMEngine prints a config that could be read again
    assert names["optim_wrapper"]["optimizer"]["lr"] == 5e-5 and names["log_level"] == "DEBUG"


def test_every_leaf_becomes_a_config_of_ones_own(write, toy_base):
    """What is set takes effect."""
    for name in {path.parent: name for name, path in leaves().items()}.values():  # one of each folder
        written, theirs = write(name, "--set", "lr=5e-5", "num_workers=0", "--force"), labels_of(leaves()[name])
        launch = re.sub(r"(xtuner train|python \S+) \S+", f"python {ROOT}/tools/train.py mine.py", theirs["launch"])
        assert written == (0, f"wrote mine.py on top of {name}; start it with\n{launch}\n", "")
        assert labels_of(write.path).items() >= {"launch": launch, "frozen": theirs["frozen"]}.items()
        cfg = read_config(str(write.path))
        found = cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.num_workers, cfg.model.base
        assert found == (5e-5, 0, str(toy_base)) and cfg.train_dataloader.dataset.data_paths == [write.data]


WRITTEN = f'''"""As \\\\ {"'" * 3}s.

trains          {"x" * 52}
                {"y" * 50}-z
                {"w" * 110}
                and on
launch          -
"""

from mmengine.config import read_base

with read_base():
    from xtp_configs.toy.toy_finetune_lora import *

rate = 1e-5  # said
words = ["it's", 'a "b"', "räume", 0.5]
fits = ["{"f" * 109}"]
long = [
    "{"l" * 110}",
]
'''


def test_lines_have_120_characters_at_most_and_no_word_is_cut(tmp_path):
    labels = {"title": 'As \\ """s.', "trains": [f"{'x' * 52} {'y' * 50}-z {'w' * 110}", "and on"]}
    changes = {"rate": 1e-5, "words": ["it's", 'a "b"', "räume", 0.5], "fits": ["f" * 109], "long": ["l" * 110]}
    own_config.write(tmp_path / "a/b/out.py", "toy_finetune_lora", labels | {"launch": "-"}, changes, {"rate": "said"})
    assert (tmp_path / "a/b/out.py").read_text() == WRITTEN


def test_it_passes_the_check_from_anywhere_with_files_that_share_an_image_folder(write, monkeypatch):
    more = ("--data", write.data, "../räume/train.jsonl", "--set", "num_workers=0")
    assert write("toy_finetune_full", *more)[::2] == (0, "")
    monkeypatch.chdir("/")
    check_config(cfg := read_config(str(write.path)))
    assert cfg.train_dataloader.dataset.data_paths == [write.data] * 2
    assert cfg.train_dataloader.dataset.image_folders == [write.images] * 2


def test_a_run_planned_for_one_gpu(write):
    """The docstring describes this run and base, and the launch line starts one process; a release brings its rate."""
    base, missing = "models/InternVL3_5-4B", "warning: models/InternVL3_5-4B does not exist yet\n"
    _, said, errors = write("finetune_full", base=base)
    assert said.startswith("lr=2e-05, for InternVL3_5-4B; finetune_full has 4e-05\n") and errors == missing
    assert "optim_wrapper.optimizer.lr = 2e-5  # for this release" in write.path.read_text()
    assert write("finetune_full", "--force", base="models/own")[0] == 0 and "for this" not in write.path.read_text()
    status, said, errors = write("finetune_full", "--force", "--gpu", "80GB", "--set", "lr=1e-5", base=base)
    labels, launch = labels_of(write.path), f"python {ROOT}/tools/train.py mine.py"
    few = "1 steps are few: LoRA takes fewer samples per step, or set a smaller accumulative_counts"
    told = f"{labels.pop('hardware')}\n{few}\nwrote mine.py on top of finetune_full; start it with\n{launch}\n"
    assert (status, said, errors) == (0, told, missing)
    trains = "projector, LLM: 4,428,476,928 of 4,732,489,216 parameters"
    expected = {"title": "InternVL3_5-4B, finetune_full, on one GPU.", "trains": trains, "frozen": "vision encoder"}
    expected |= {"starts from": str(write.path.parent / base), "data": f"{write.data}; images in {write.images}"}
    assert labels == expected | {"launch": launch}
    lines = {"optim_wrapper.optimizer.lr = 1e-5", 'optim_wrapper.optimizer.type = "AdamW8bit"'}
    lines |= {"train_dataloader.batch_size = 4  # x 32 accumulation x 1 GPU = 128 samples per step"}
    assert lines < set(write.path.read_text().splitlines())
    _, said, _ = write("finetune_qlora", "--gpu", "auto", "--force", "--data", "none", base="models/InternVL3_5-1B")
    assert "no GPU was found: on a processor this is a trial" in said
    labels, frozen = labels_of(write.path), "vision encoder, projector, the LLM's own weights, in 4 bits"
    assert labels["frozen"] == frozen and labels["trains"].startswith("LoRA of rank 16 on the LLM: 10,")


def test_what_can_not_be_is_not_written(write):
    write.path.write_text("kept")
    (write.path.parent / "finetune_lora.py").write_text("")
    status, _, errors = write("finetune_lora")
    assert status == 2 and errors == "error: mine.py exists; --force replaces it\n"
    for words, message in (
        ("finetune_lora --set lr=abc", "optim_wrapper.optimizer.lr='abc': build_adamw takes float"),
        ("finetune_lora --family toy", "--family and --stage choose what is listed"),
        ("finetune_lora --images a b", "2 image folders for 1 files; give one for each"),
        ("finetune_lora --base models/InternVL3-8B --gpu 12GB", "the nearest that fits: finetune_qlora with "),
        ("finetune_lora --gpu 4091", "--gpu 4091: give memory as 24GB"),
        ("mine.py", "mine.py is no config of configs/; take it in as docs/training.md shows"),
        ("./finetune_lora.py", "finetune_lora.py is no config of configs/"),
    ):
        status, _, errors = write(*words.split(), "--force")
        assert status == 2 and message in errors, (words, errors)
        assert write.path.read_text() == "kept"
