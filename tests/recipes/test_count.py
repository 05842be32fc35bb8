"""Parameters at true size: those of the published models, and of what PEFT and the training model really add."""

import pytest
import torch
from peft import LoraConfig

from xtuner_plugins.models.adapters import inject_lora
from xtuner_plugins.recipes.bases import BASES, ENCODERS, LLMS
from xtuner_plugins.recipes.count import TOWERS, count, meta_model
from xtuner_plugins.recipes.recipe import setting_of
from xtuner_plugins.recipes.table import RECIPES

ROWS = {recipe.stem: recipe for recipe in RECIPES}
# Totals in billions as model cards and stored tensors give them.
PUBLISHED = {
    "InternVL2-1B": "0.9382",
    "InternVL2-8B": "8.08",
    "InternVL-Chat-V1-5": "25.5",
    "InternVL2-26B": "25.5",
    "InternVL2_5-2B": "2.206",
    "InternVL2_5-4B": "3.71",
    "InternVL3-8B": "7.94",
    "InternVL3-14B": "15.1",
    "InternVL3-38B": "38.4",
    "InternVL3_5-1B": "1.061",
    "InternVL3_5-8B": "8.53",
    "InternVL3_5-30B-A3B": "30.8",
}


@pytest.mark.parametrize("name, billions", PUBLISHED.items())
def test_totals_are_the_published_ones(name, billions):
    total = sum(p.numel() for p in meta_model(BASES[name]).parameters())
    assert f"{total / 1e9:.{len(billions.partition('.')[2])}f}" == billions


def test_each_base_names_known_parts_and_is_used():
    assert {recipe.base for recipe in RECIPES} == set(BASES)
    for base in BASES.values():
        assert base.encoder in ENCODERS and base.llm in LLMS and base.commands


@pytest.mark.parametrize("stem", ["siglip_sft_lora", "clip_qwen2_5_7b_lora", "internvl_v3_5_qwen3_1b_lora_finetune"])
def test_adapters_are_those_that_peft_adds(stem):
    """By names, by a regular expression, by the family's own targets."""
    recipe = ROWS[stem]
    meta_model.cache_clear()
    model = meta_model(recipe.architecture)
    counted = count(recipe)
    llm = model.language_model
    settings = {key.removeprefix("lora_"): setting_of(recipe, key) for key in ("lora_rank", "lora_targets")}
    from xtuner_plugins.families import llm_family

    with torch.device("meta"):
        inject_lora(
            llm,
            dict(type=LoraConfig, r=settings["rank"], target_modules=settings["targets"]),
            llm_family(llm.config.to_dict()).lora_targets,
        )
    adapters = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    assert counted.adapters == adapters > 0
    assert counted.trained == adapters + sum(p.numel() for p in model.mlp1.parameters())
    meta_model.cache_clear()


def test_what_trains_whole_is_counted_without_layers_that_no_feature_needs():
    full = count(ROWS["llava_qwen2_5_3b_full"])
    model = meta_model(ROWS["llava_qwen2_5_3b_full"].architecture)
    unused = [model.vision_model.layers[-1], model.vision_model.vision_model.post_layernorm]
    assert full.total - full.trained == sum(p.numel() for module in unused for p in module.parameters())
    assert full.adapters == full.packed == 0


def test_memory_counts_every_weight_once():
    full, qlora = count(ROWS["finetune_full"]), count(ROWS["finetune_qlora"])
    assert full.gigabytes == pytest.approx((full.trained * 16 + (full.total - full.trained) * 2) / 1e9)
    projector = sum(
        p.numel()
        for p in meta_model(BASES["InternViT-300M-Qwen2.5-1.5B"]).get_submodule(TOWERS["projector"]).parameters()
    )
    frozen = qlora.total - qlora.packed - projector
    assert qlora.gigabytes == pytest.approx((frozen * 2 + qlora.packed * 0.52 + qlora.trained * 16) / 1e9)
