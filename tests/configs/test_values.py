"""Rates, decay, ranks, batches and lengths of each recipe beside a table made from its authors' scripts."""

import re

from xtuner_plugins.settings import labels_of, leaves, read_config

# Full fine-tuning of a released model, by family and size: learning rate, weight decay, drop path of an encoder that
# trains.
RELEASED = {
    "v1_5": {"2b": (4e-5, 0.01, 0.1), "4b": (4e-5, 0.05, 0.1), "26b": (2e-5, 0.05, 0.4)},
    "v2": {"2b": (4e-5, 0.01, 0.1), "4b": (4e-5, 0.01, 0.1), "8b": (4e-5, 0.05, 0.1), "26b": (2e-5, 0.05, 0.4)},
    "v2_5": {"1b 2b 4b": (4e-5, 0.01, 0.1), "8b": (4e-5, 0.05, 0.1), "26b": (2e-5, 0.05, 0.4)},
    "v3": {"1b": (1e-5, 0.05, 0), "2b 8b": (2e-5, 0.05, 0), "14b": (2e-5, 0.05, 0.1), "38b": (2e-5, 0.05, 0.2)},
    "v3_5": {"1b 2b 4b 8b 14b 30b": (2e-5, 0.05, 0)},
}
NAME = re.compile(r"internvl_(v[\d_]+?)_[a-z]+[\d_]*?_(\d+b)(?:_a3b)?_(finetune|lora_finetune|qlora_finetune)")
# Rate, weight decay, samples (or packs) per step, tokens; LoRA's rank and alpha.
OTHERS = {
    "pretrain_mlp": (1e-3, 0, 256, 4096),
    "pretrain_vit_mlp": (1e-5, 0.05, 256, 4096),
    "finetune_full": (4e-5, 0.01, 128, 8192),
    "finetune_packed": (4e-5, 0.01, 32, 8192),
    "finetune_lora": (1e-4, 0.05, 16, 8192, 16, 32),
    "finetune_qlora": (1e-4, 0.05, 16, 8192, 16, 32),
    "finetune_dpo_lora": (1e-5, 0.05, 32, 8192, 16, 32),
    "finetune_dpo_qlora": (1e-5, 0.05, 32, 8192, 16, 32),
    "finetune_mpo_full": (5e-6, 0.05, 256, 8192),
    "flash_consistency": (2e-5, 0.05, 16, 8192),
    "flash_router": (1e-4, 0.05, 16, 8192),
    "internvl_v2_internlm2_5_8b_mpo": (5e-6, 0.05, 256, 2 * 6144),
    "internvl_v2_5_internlm2_5_8b_mpo": (1e-6, 0.05, 256, 2 * 8192),
    "internvl_v3_qwen2_5_8b_mpo": (2e-7, 0.05, 256, 2 * 12288),
    "internvl_v3_5_qwen3_8b_mpo": (2e-7, 0.05, 256, 2 * 16384),
    "internvl_v3_5_sft": (8e-5, 0.05, 512, 32768),
    "siglip_pretrain": (1e-3, 0, 256, 1024),
    "siglip_sft_mlp": (1e-4, 0, 64, 1024),
    "siglip_sft_full": (2e-5, 0, 32, 1024),
    "siglip_sft_lora": (1e-4, 0, 32, 1024, 64, 16),
    "siglip_sft_qlora": (1e-4, 0, 32, 1024, 64, 16),
    "siglip_dpo_lora": (1e-5, 0.05, 32, 1024, 64, 16),
    "clip_qwen_7b_lora": (3e-5, 0, 4, 2048, 128, 256),
    "siglip_qwen_7b_lora": (3e-5, 0, 4, 2048, 128, 256),
    "llava_pretrain": (1e-3, 0, 256, 2048),
    "llava_qwen2_5_3b_full": (2e-5, 0, 128, 2048),
    "llava_qwen2_5_3b_freeze_vision": (2e-5, 0, 128, 2048),
    "llava_qwen2_5_3b_lora": (2e-4, 0, 128, 2048, 128, 256),
    "llava_qwen2_5_3b_lora_frozen_projector": (2e-4, 0, 128, 2048, 128, 256),
}
PART_RATES = {
    "pretrain_vit_mlp": {"projector": 2e-4},
    "clip_qwen_7b_lora": {"projector": 1e-4},
    "siglip_qwen_7b_lora": {"projector": 1e-4},
    "llava_qwen2_5_3b_lora": {"projector": 2e-5},
    "llava_qwen2_5_3b_full": {"visual_encoder": 2e-6},
}
# Tokens and tiles of a pack, whose loss is `square` and whose images are compressed at random.
PACKS = {"finetune_packed": (8192, 26), "internvl_v3_5_sft": (32768, 96)}


RECIPES = {name: path for name, path in leaves().items() if path.parent.name != "toy"}


def expected(name):
    """The row of a recipe: that of `OTHERS`, or by the family's table and the rules for LoRA."""
    if name in OTHERS:
        return OTHERS[name]
    family, size, kind = NAME.fullmatch(name).groups()
    rate, decay, _ = next(row for sizes, row in RELEASED[family].items() if size in sizes.split())
    tokens = 4096 if family == "v1_5" else 8192
    if kind == "finetune":
        return rate, decay, 128, tokens
    return 5e-5 if int(size[:-1]) > 14 else 1e-4, decay, 16, tokens, 16, 32


def shipped(name, path):
    cfg = read_config(name)
    loader, optimizer = cfg.train_dataloader, cfg.optim_wrapper.optimizer
    processes = re.search(r"NPROC_PER_NODE=(\d+)", labels_of(path)["launch"])
    samples = loader.batch_size * cfg.optim_wrapper.accumulative_counts * int(processes[1] if processes else 1)
    lora = cfg.model.get("llm_lora")
    ranks = (lora.r, lora.lora_alpha) if lora else ()
    return optimizer.lr, optimizer.weight_decay, samples, loader.dataset.max_length, *ranks


def test_every_recipe_ships_the_values_of_the_table():
    wrong = {name: (shipped(name, path), expected(name)) for name, path in RECIPES.items()}
    assert {name: pair for name, pair in wrong.items() if pair[0] != pair[1]} == {}


def test_what_the_recipes_share():
    for name in RECIPES:
        cfg = read_config(name)
        model, data = cfg.model, cfg.train_dataloader.dataset
        reduction = "square" if name in PACKS else "sample" if name == "flash_router" else "token"
        assert data.get("loss_reduction", "token") == reduction, name
        assert data.get("jpeg_quality") == ((75, 100) if name in PACKS else None), name
        pack = cfg.train_dataloader.get("batch_sampler") or {}
        assert (pack.get("max_tokens"), pack.get("max_tiles")) == PACKS.get(name, (None, None)), name
        rates = cfg.optim_wrapper.paramwise_cfg.part_lr
        assert {part: rate for part, rate in rates.items() if rate is not None} == PART_RATES.get(name, {}), name
        if model.get("llm_lora"):
            assert model.llm_lora.lora_dropout == (0.1 if "qwen_7b" in name else 0.05), name
        assert cfg.param_scheduler.warmup_ratio == 0.03 and cfg.optim_wrapper.clip_grad.max_norm == 1.0, name
        if found := NAME.fullmatch(name):
            row = next(row for sizes, row in RELEASED[found[1]].items() if found[2] in sizes.split())
            full = found[3] == "finetune"
            assert model.get("drop_path", 0) == full * row[2] and bool(model.get("freeze_projector")) != full, name
            assert data.max_tiles == 12 and model.get("freeze_visual_encoder", True), name
        if name.endswith("mpo"):
            assert not model.freeze_visual_encoder and model.drop_path == 0.1 and model.beta == 0.1, name
            assert model.objectives == {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}, name
            assert model.base.endswith("-Instruct") == name.startswith("internvl_v3"), name
