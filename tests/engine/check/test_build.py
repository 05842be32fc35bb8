"""What the text doesn't tell is refused by the very constructors, in one line, before a process starts."""

import warnings

import pytest
import torch

from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.engine.check.build import check_build, check_config
from xtuner_plugins.engine.launch.launcher import make_reloadable
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.settings import ConfigError, read_config
from xtuner_plugins.weights import lazy

from ..forked import base_and_data

LORA, MPO = "toy_finetune_lora", "toy_finetune_mpo_full"
DATASET, LLM_LORA, VALIDATION = "train_dataloader.dataset", "model.llm_lora", "default_hooks.validation"


@pytest.fixture
def load(toy_base, data):
    def load(changes=(), leaf=LORA):
        file = data[0] if leaf == LORA or "qlora" in leaf else data[0].with_name("pairs.jsonl")
        return read_config(leaf, {**base_and_data(toy_base, (file, data[1])), **dict(changes)})

    return load


def refusal(cfg, *more):
    with pytest.raises(ConfigError) as caught:
        check_config(cfg, *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_config_that_trains_is_built_and_nothing_is_kept(load, monkeypatch, tmp_path):
    """The check of a 7B model must not read 14 GB. What a run has written is the same config; its types are text."""
    monkeypatch.setattr(lazy.LazyTensor, "read", lambda self: pytest.fail("a weight was read"))
    before = (cfg := load({"train_dataloader.num_workers": 99})).to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the run itself warns of so many workers
        assert check_config(cfg, {"bf16": {"enabled": "auto"}}) is None
    assert cfg.to_dict() == before and torch.get_default_device().type == "cpu"
    same = (cfg := load(leaf=MPO)).to_dict()
    for _ in range(2):
        make_reloadable(cfg)
        (tmp_path / "written.py").write_text(cfg.pretty_text)
        cfg = read_config(str(tmp_path / "written.py"))
    del same["model_resource"], same["pretrained_model_name_or_path"]  # what only a lazy config can say
    assert cfg.to_dict() == {**same, "custom_imports": {"imports": ["xtuner_plugins.engine.prepared"]}}
    check_config(cfg)
    for key, value in ("model.dtype", "int8"), (f"{DATASET}.template", "nope"):
        assert value in refusal(read_config(str(tmp_path / "written.py"), {key: value}))
    check_build(load({f"{LLM_LORA}.type": "LoraConfig"}))
    check_build(load({"model.llm_quantization.type": "BitsAndBytesConfig"}, "toy_finetune_qlora"))


def test_a_refusal_names_the_key_of_the_part(load, tmp_path):
    """More rows stand in tests/golden/wrong_inputs.tsv."""
    (tmp_path / "broken.jsonl").write_text("{'image': 'a.png'}\n")
    for key, value, message in (
        ("train_dataloader.prefetch_factor", -1, "train_dataloader: prefetch_factor"),
        ("optim_wrapper.optimizer.betas", (0.9, 1.5), "optim_wrapper: Invalid beta parameter at index 1"),
        ("optim_wrapper.paramwise_cfg.loraplus_lr_ratio", 0, "optim_wrapper.paramwise_cfg: loraplus_lr_ratio=0"),
        ("param_scheduler", [{"type": "WarmupCosineLR", "warmup_ratio": -1}], "param_scheduler[0]: warmup_ratio=-1"),
        ("param_scheduler", [0.1], "param_scheduler[0]=0.1 has no type; give it one"),
        ("custom_hooks", [{"interval": 3}], "custom_hooks[0]={{'interval': 3}} has no type; give it one"),
        ("model.freeze_llm", False, "model: llm_lora is set, so set freeze_llm=True"),
        (f"{LLM_LORA}.type", "LoraKonfig", f"{LLM_LORA}.type='LoraKonfig' is not a known class"),
        (LLM_LORA, {"type": "LoraConfig", "rank": 4}, f"{LLM_LORA}.rank: LoraConfig has no setting 'rank'"),
        (f"{DATASET}.dataset_settings", [{"max_tiles": 200}], "lower max_tiles to 30 or raise max_length above"),
        (f"{VALIDATION}.data_paths", [f"{tmp_path}/broken.jsonl"], "val_data_paths: {}/broken.jsonl:1: not JSON"),
    ):
        assert message.format(tmp_path) in refusal(load({key: value})), key
    said = refusal(load({"model.dtype": "float32"}), {"bf16": {"enabled": True}})
    assert said.startswith("--deepspeed: the file sets bf16.enabled=True, but the model computes in float32 (model.dt")


def test_model_dataset_and_collate_function_of_pairs_go_together(load, data):
    for part in ("model", "dataset", "collate_fn"):
        cfg = load({f"{DATASET}.data_paths": str(data[0])} if part == "dataset" else (), MPO)
        if part == "model":
            cfg.model = dict(type=VisionLanguageModel, base=cfg.model.base, dtype="float32")
        else:
            cfg.train_dataloader[part].type = {"dataset": MultimodalDataset, "collate_fn": collate}[part]
        assert "don't fit together: " in refusal(cfg), part
    once, pairs = {"model.precomputed_reference": True}, str(data[0].with_name("pairs.jsonl"))
    files = {f"{VALIDATION}.data_paths": [pairs], f"{VALIDATION}.image_folders": [str(data[1])]}
    said = refusal(load({**once, **files}, MPO))
    assert said.startswith("val_data_paths: log probabilities of the reference are computed once for")
    check_build(load(once, MPO))
    check_build(load({**once, **files, f"{DATASET}.max_length": 8192}, "finetune_dpo_lora"))
