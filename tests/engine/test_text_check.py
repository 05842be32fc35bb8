"""What is refused from a config's text; tests/tools/test_refusals.py has the commands."""

import json

import pytest
import torch

from xtuner_plugins.engine.text_check import RANGES, _llama_layers, check_known, check_values, check_vision
from xtuner_plugins.settings import ConfigError


def config(toy_base, **dataset):
    return {"model": {"base": str(toy_base)}, "train_dataloader": {"dataset": {"max_length": 512, **dataset}}}


def test_values_that_are_none_or_absent_are_left_to_their_class(toy_base):
    check_values({})
    check_values({"model": {"llm_lora": None, "dtype": None}, "optim_wrapper": {"optimizer": {"lr": None}}})
    check_values(config(toy_base, max_tiles=6, template=None))


@pytest.mark.parametrize("key_path", RANGES)
def test_every_range_names_its_key(key_path):
    *parents, key = key_path.split(".")
    cfg = {key: "nonsense"}
    for parent in reversed(parents):
        cfg = {parent: cfg}
    with pytest.raises(ConfigError, match=rf"^{'.'.join(parents)}: .*'nonsense'"):
        check_values(cfg)


def test_settings_of_single_files_leave_the_room_to_them(toy_base):
    with pytest.raises(ConfigError, match="max_tiles=200 means images of"):
        check_values(config(toy_base, max_tiles=200))
    check_values(config(toy_base, max_tiles=200, dataset_settings=[{"max_tiles": 1}]))
    with pytest.raises(ConfigError, match="min_tiles=3 and max_tiles=2 are no tile limits"):
        check_values(config(toy_base, min_tiles=3, max_tiles=2))


@pytest.mark.parametrize("part, right", [("llm", ["q_proj", "nothing"]), ("visual_encoder", ["attn.qkv"])])
def test_targets_are_layers_of_their_part(part, right, toy_base):
    cfg = config(toy_base)
    cfg["model"][f"{part}_lora"] = {"target_modules": right}
    check_values(cfg)
    for wrong in (["nothing"], "q_proj", ["language_model"]):
        cfg["model"][f"{part}_lora"] = {"target_modules": wrong}
        with pytest.raises(ConfigError, match=f"model.{part}_lora.target_modules=.* is no layer here; it has "):
            check_values(cfg)
        check_values({"model": {**cfg["model"], "base": "none"}})
        cfg["model"][f"{part}_lora"]["target_parameters"] = ["x"]
        check_values(cfg)


def test_targets_of_an_internlm2_are_those_of_the_llama_that_it_becomes(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, vocab_size=8)
    llama = LlamaForCausalLM(LlamaConfig(**sizes))
    own = [name for name, module in llama.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))]
    assert sorted(_llama_layers(sizes)) == sorted(own)

    llm = {"model_type": "internlm2", **sizes}
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": llm, "vision_config": {}}))
    cfg = {"model": {"base": str(tmp_path), "llm_lora": {"target_modules": ["q_proj"]}}}
    check_values(cfg)
    cfg["model"]["llm_lora"]["target_modules"] = ["wqkv"]
    with pytest.raises(ConfigError, match="target_modules=.'wqkv'. is no layer here; it has .*q_proj"):
        check_values(cfg)


def test_a_language_model_alone_is_no_base(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ConfigError, match="has no vision part .model_type 'qwen3'"):
        check_vision(str(tmp_path))
    (tmp_path / "config.json").write_text("no JSON")
    check_vision(str(tmp_path))  # said where it is read


def test_the_runners_own_arguments_are_known():
    check_known("optim_wrapper.optimizer", {"type": 0, "lr": 1, "params": []}, {"lr"}, "AdamW")
    with pytest.raises(ConfigError, match="a.b.lrr: Owner has no setting 'lrr'; did you mean 'lr'"):
        check_known("a.b", {"type": 0, "lrr": 1}, {"lr"}, "Owner")
    with pytest.raises(ConfigError, match="known: alpha, beta"):
        check_known("a.b", {"type": 0, "zzz": 1}, {"beta", "alpha"}, "Owner")
