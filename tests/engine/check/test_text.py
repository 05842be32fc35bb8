"""What is refused from a config's text; tests/golden/wrong_inputs.tsv has the commands, and more rows."""

from unittest import mock

import pytest

from tests.conftest import ROOT
from tests.golden.wrong_inputs import command, is_told, places, rows
from xtuner_plugins.engine.check import build
from xtuner_plugins.engine.check.text import check_base, check_text, step_note
from xtuner_plugins.engine.launch import launcher
from xtuner_plugins.settings import ConfigError, read_config

DATA = "train_dataloader.dataset"
LORA = "toy_finetune_lora"
NOTHING = {"model.llm_lora": None, "model.freeze_projector": True}
# Changed values by key of what can be trained.
PASSES = [
    {f"{DATA}.max_tiles": 200, f"{DATA}.dataset_settings": [{"max_tiles": 1}]},  # the build looks at each file
    {"train_cfg.max_epochs": 0.5, "train_cfg.max_iters": 10},
    {"model.freeze_projector": None},
    {"model.llm_lora": None, "model.llm_quantization": {}, "model.train_head": True},
    {**NOTHING, "model.train_head": True},
    {**NOTHING, "model.visual_encoder_last_layers": 1},
    {**NOTHING, "model.visual_encoder_lora": {"r": 4}},
    *({**NOTHING, f"model.freeze_{key}": False} for key in ("visual_encoder", "llm")),
]


@pytest.fixture(scope="module")
def found(toy_base, tmp_path_factory):
    return places(tmp_path_factory.mktemp("found"), toy_base)


def test_what_can_be_trained_passes(found, tmp_path):
    """Limits of a base in another format are left to the build."""
    ready = {f"{DATA}.data_paths": [str(found["data"])], f"{DATA}.image_folders": [str(found["images"])]}
    for changes in PASSES:
        check_text(read_config(LORA, {**ready, "model.base": str(found["base"]), **changes}))
    for name, text in (("config", '{"vision_config": {}, "downsample_ratio": 0.5}'), ("tokenizer", "{}")):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "model.safetensors").touch()
    check_text(read_config(LORA, {**ready, "model.base": str(tmp_path), f"{DATA}.max_tiles": 200}))


def test_commands(found, capsys):
    """In this process; what the text tells is told before anything is built."""
    for row in rows():
        with mock.patch.object(build, "register_all", wraps=build.register_all) as built:
            assert launcher.main(command(row, found)) == 2, row
        assert row["seen"] == "build" or not built.called, row
        (line,) = capsys.readouterr().err.splitlines()
        assert is_told(row, found, line), (row, line)


MISSING = [
    ("finetune_full", "exports/pretrain_mlp", "convert_to_official.py configs/pretrain_mlp.py CHECKPOINT ex"),
    ("finetune_lora", "exports/mine", "convert_to_official.py CONFIG CHECKPOINT exports/mine"),
    ("toy/toy_finetune_lora", "work_dirs/quickstart/pretrain_mlp", "make it: make quickstart"),
    ("internvl_v2/internvl_v2_internlm2_5_8b_finetune", "models/InternVL2-8B", "make it: hf download OpenGVLab"),
    (None, "models/none", "or download a released one with hf download ORG/MODEL --local-dir models/none"),
]


def test_a_missing_base_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no quick start has run
    for config, base, remedy in MISSING:
        with pytest.raises(ConfigError) as error:
            check_base(base, config and str(ROOT / f"configs/{config}.py"))
        assert remedy in str(error.value) and f"model.base={base!r}: no such directory; " in str(error.value)


def test_far_more_or_fewer_samples_per_step_than_the_recipe_are_told(tmp_path):
    path = tmp_path / "mine.py"
    for recipe, ranks, changes, told in (
        ("finetune_full", 8, {}, ""),
        ("finetune_full", 2, {}, "32 samples per step, but finetune_full has 128, for which its lr=4e-05 is meant"),
        ("finetune_full", 2, {"optim_wrapper.optimizer.lr": 1e-5}, ""),
        ("finetune_lora", 4, {}, "64 samples per step, but finetune_lora has 16"),
    ):
        lines = "from mmengine.config import read_base", "with read_base():", f"    from xtp_configs.{recipe} import *"
        path.write_text("\n".join(lines))
        for name in (recipe, str(path)):
            note = step_note(read_config(name, changes), ranks)
            assert note.startswith(told) and bool(note) == bool(told)
    assert step_note(read_config(str(ROOT / "configs/_base_/run.py")), 64) == ""
