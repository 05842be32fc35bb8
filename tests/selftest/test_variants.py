"""Variants of a config: each changes what it says, and leaves the given one as it is."""

import copy

import pytest

from xtuner_plugins.config_file import ConfigError, read_config
from xtuner_plugins.selftest import variants
from xtuner_plugins.selftest.samples import Samples

SAMPLES = Samples(
    {"data_paths": ["a"], "image_folders": ["b"], "dataset_settings": None}, "", True, [(30, 2), (50, 0), (20, 3)]
)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    def read(name):
        return variants.dumped(read_config(name), tmp_path_factory.mktemp("read"))

    return read


def shrunk(settings):
    from pathlib import Path

    return variants.shrink(settings, Path("/twin"), SAMPLES, Path("/cache"))


def test_settings_of_the_training_stay(read):
    settings = read("finetune_lora")
    variants.check_kind(settings)
    before = copy.deepcopy(settings)
    tiny = shrunk(settings)
    assert settings == before
    for key in ("optim_wrapper", "param_scheduler"):
        assert tiny[key] == settings[key]
    assert tiny["model"]["llm_lora"] == settings["model"]["llm_lora"] and tiny["model"]["dtype"] == "float32"
    assert tiny["train_dataloader"]["dataset"]["max_tiles"] == settings["max_tiles"]
    assert variants.whole_steps(tiny)["model"]["llm_lora"]["lora_dropout"] == 0.0
    assert tiny["model"]["llm_lora"]["lora_dropout"] == 0.05


@pytest.mark.parametrize(
    "name, collate, packed",
    [
        ("finetune_full", "collate", "collate_packed"),
        ("finetune_packed", "collate", "collate_packed"),
        ("finetune_dpo_lora", "collate_pairs", "collate_pairs"),
    ],
)
def test_batches_and_packs_from_either_kind(read, name, collate, packed):
    tiny = shrunk(read(name))
    packs, batches = variants.in_packs(tiny, SAMPLES), variants.in_batches(tiny, 4, 2)
    assert variants.is_packed(packs) and not variants.is_packed(batches)
    sampler = packs["train_dataloader"]["batch_sampler"]
    assert (sampler["max_tokens"], sampler["max_tiles"]) == (100, 6)
    assert packs["train_dataloader"]["collate_fn"]["type"].endswith(f".{packed}")
    assert batches["train_dataloader"]["collate_fn"]["type"].endswith(f".{collate}")
    assert batches["train_dataloader"]["batch_size"] == 4 and batches["optim_wrapper"]["accumulative_counts"] == 2


def test_the_source_is_a_config(read, tmp_path):
    (tmp_path / "a.py").write_text(variants.source(shrunk(read("finetune_qlora"))))
    again = read_config(str(tmp_path / "a.py"))
    assert callable(again.model_resource["fn"]) and again.model.base == "/twin"


def test_what_a_strategy_can_not_do(read):
    assert variants.unsupported(read("finetune_qlora"), "zero3") and not variants.unsupported(
        read("finetune_qlora"), "ddp"
    )
    mpo = copy.deepcopy(read("finetune_mpo_full"))
    assert "copy" in variants.unsupported(mpo, "zero3") and not variants.unsupported(mpo, "zero2")
    mpo["model"]["precomputed_reference"] = True
    assert not variants.unsupported(mpo, "zero3")
    assert not variants.unsupported(read("finetune_dpo_lora"), "zero3")
    eight = copy.deepcopy(read("finetune_lora"))
    eight["optim_wrapper"]["optimizer"]["name"] = "adamw_8bit"
    assert "adamw_8bit" in variants.unsupported(eight, "zero1") and not variants.unsupported(eight, "ddp")


def test_other_models_are_refused(read):
    with pytest.raises(ConfigError, match="model.type: only configs with VisionLanguageModel or P.* not Other"):
        variants.check_kind({**read("finetune_lora"), "model": {"type": "Other"}})
    pairs = read("finetune_dpo_lora")["model"]
    with pytest.raises(ConfigError, match="PreferenceModel can be tested with PreferenceDataset only, not Multimodal"):
        variants.check_kind({**read("finetune_lora"), "model": pairs})
