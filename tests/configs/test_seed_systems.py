"""What the five systems that the recipes come from are known for, said by the recipes themselves."""

import pytest

from xtuner_plugins.planning.plan import job_of, model_of
from xtuner_plugins.settings import leaves, parse_words, read_config

LLAVA = "llava_qwen2_5_3b"


@pytest.mark.parametrize(
    "name, whole, adapters",
    [
        (f"{LLAVA}_full", {"visual_encoder", "projector", "llm"}, set()),
        (f"{LLAVA}_freeze_vision", {"projector", "llm"}, set()),
        (f"{LLAVA}_lora", {"projector"}, {"llm"}),
        (f"{LLAVA}_lora_frozen_projector", set(), {"llm"}),
    ],
)
def test_the_four_ways_to_train_a_llava(name, whole, adapters):
    settings = read_config(name)._to_lazy_dict()
    job = job_of(settings, model_of(settings["model"]["base"]))
    assert (set(job.whole), set(job.adapters)) == (whole, adapters)


def test_an_image_of_siglip_takes_169_tokens():
    for name in ("siglip_pretrain", "siglip_sft_lora"):
        settings = read_config(name)._to_lazy_dict()
        assert model_of(settings["model"]["base"]).tokens_per_tile == 169
        assert settings["train_dataloader"]["dataset"]["max_tiles"] == 1


def test_every_recipe_takes_shares_and_workers():
    """`repeat_times`, also on the command line; workers."""
    changes = parse_words(["data_paths=[a.json,b.json,c.json]", "repeat_times=[2,0.5,3.5]", "num_workers=8"])
    for name in leaves():
        loader = read_config(name, changes).train_dataloader
        assert loader.dataset.repeat_times == [2, 0.5, 3.5] and len(loader.dataset.data_paths) == 3
        assert loader.num_workers == 8 and (loader.get("pin_memory") or "toy" in name)
