"""Recipes of models around CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .data import CAPTIONS, CC3M_595K, CHINESE_PRETRAIN, CHINESE_SFT, LLAVA_80K, LLAVA_150K, MY_PAIRS
from .recipe import PLANNED, Commented, Data, Recipe, batch_settings

_SIGLIP = dict(folder="siglip_qwen2_5", hardware=f"1 GPU of 24 GB {PLANNED}")
_ONE_TILE = {
    "max_tiles": Commented(1, "the whole image at 384 x 384: 169 tokens"),
    "max_length": Commented(1024, "tokens; the image takes 169"),
}
_SIX_TILES = {
    "max_tiles": Commented(6, "+ thumbnail"),
    "max_length": Commented(2048, "tokens; 7 tiles take 1183"),
}
_SIGLIP_LORA = {
    "lora_rank": 64,
    "lora_alpha": 16,
    "lora_targets": Commented(["q_proj", "k_proj", "v_proj", "o_proj"], "None: every linear layer of a block"),
}


def _siglip(stem: str, title: str, data: Data, *, tiled: bool = False, stage: int = 1, settings=None, **row) -> Recipe:
    warmed = f"exports/siglip_pretrain{'_tiled' if tiled else ''}"
    if stage == 2:
        row = dict(starts_from=warmed, origin=(f"{warmed}, the exported warm-up",), **row)
    return Recipe(
        f"siglip_{stem}",
        title,
        data,
        "SigLIP-Qwen2.5-0.5B" + ("-tiled" if tiled else ""),
        settings={
            **(_SIX_TILES if tiled else _ONE_TILE),
            **batch_settings(8, 4, 1),
            "max_epochs": 5,
            **(settings or {}),
        },
        **_SIGLIP,
        **row,
    )


SIGLIP_RECIPES = (
    _siglip(
        "pretrain", "SigLIP + Qwen2.5-0.5B, warm-up of the projector on captions.", CC3M_595K, settings={"lr": 1e-3}
    ),
    _siglip(
        "pretrain_zh",
        "SigLIP + Qwen2.5-0.5B, warm-up of the projector on Chinese captions.",
        CHINESE_PRETRAIN,
        settings={"lr": 1e-3},
    ),
    _siglip(
        "pretrain_tiled",
        "SigLIP + Qwen2.5-0.5B with tiles, warm-up of the projector on captions.",
        CC3M_595K,
        tiled=True,
        settings={"lr": 1e-3},
    ),
    _siglip(
        "sft_mlp_150k",
        "SigLIP + Qwen2.5-0.5B, the projector alone learns from instructions.",
        LLAVA_150K,
        stage=2,
        settings={"lr": 2e-5},
    ),
    _siglip(
        "sft_mlp_80k",
        "SigLIP + Qwen2.5-0.5B, the projector alone learns from fewer instructions.",
        LLAVA_80K,
        stage=2,
        settings={"lr": 2e-5},
    ),
    _siglip(
        "sft_lora",
        "SigLIP + Qwen2.5-0.5B, LoRA on the LLM's attention, the projector whole.",
        LLAVA_150K,
        stage=2,
        llm="lora",
        settings={"lr": 2e-5, "lora_lr": 1e-4, **_SIGLIP_LORA},
    ),
    _siglip(
        "sft_qlora",
        "SigLIP + Qwen2.5-0.5B, as siglip_sft_lora.py with encoder and LLM in 4 bits.",
        LLAVA_150K,
        stage=2,
        llm="lora",
        quantized=("visual_encoder", "llm"),
        settings={"lr": 2e-5, "lora_lr": 1e-4, **_SIGLIP_LORA},
    ),
    _siglip(
        "sft_lora_zero2",
        "SigLIP + Qwen2.5-0.5B, as siglip_sft_lora.py on 4 GPUs with ZeRO-2.",
        LLAVA_150K,
        stage=2,
        llm="lora",
        processes=4,
        deepspeed="deepspeed_zero2",
        settings={"lr": 2e-5, "lora_lr": 1e-4, **_SIGLIP_LORA, **batch_settings(8, 1, 4)},
    ),
    _siglip(
        "sft_full_zero3",
        "SigLIP + Qwen2.5-0.5B, projector and LLM whole on 4 GPUs with ZeRO-3.",
        LLAVA_150K,
        stage=2,
        llm="all",
        processes=4,
        deepspeed="deepspeed_zero3",
        settings={"lr": 2e-5, **batch_settings(8, 1, 4)},
    ),
    _siglip(
        "dpo_lora",
        "SigLIP + Qwen2.5-0.5B, third stage: DPO with LoRA on pairs of answers.",
        MY_PAIRS,
        llm="lora",
        projector="frozen",
        objectives={"dpo": 1.0},
        starts_from="exports/siglip_sft_lora",
        origin=("exports/siglip_sft_lora, the exported fine-tuning",),
        settings={"lr": 1e-5, "max_epochs": 1, **_SIGLIP_LORA},
    ),
    _siglip(
        "sft_lora_zh",
        "SigLIP + Qwen2.5-0.5B, LoRA on Chinese conversations.",
        CHINESE_SFT,
        stage=2,
        llm="lora",
        settings={"lr": 2e-5, "lora_lr": 1e-4, **_SIGLIP_LORA},
    ),
    _siglip(
        "sft_lora_tiled",
        "SigLIP + Qwen2.5-0.5B with tiles, LoRA: reads what one image of 384 pixels can't show.",
        LLAVA_150K,
        tiled=True,
        stage=2,
        llm="lora",
        settings={"lr": 2e-5, "lora_lr": 1e-4, **_SIGLIP_LORA, **batch_settings(2, 16, 1)},
    ),
)


# ---------------------------------------------------------------- CLIP or SigLIP + Qwen
def _clip_qwen(stem: str, title: str, base: str, tokens: int, targets: Any) -> Recipe:
    return Recipe(
        stem,
        title,
        CAPTIONS,
        base,
        folder="clip_qwen",
        llm="lora",
        hardware=f"1 GPU of 80 GB {PLANNED}",
        notes={"less memory": "batch_size = 1 with accumulative_counts = 4"},
        settings={
            "max_tiles": Commented(1, f"the whole image: {tokens} tokens"),
            "max_length": Commented(2048, f"tokens; the image takes {tokens}"),
            "lora_rank": 128,
            "lora_alpha": 256,
            "lora_dropout": 0.1,
            "lora_targets": targets,
            **batch_settings(4, 1, 1),
            "max_epochs": 2,
            "lr": 3e-5,
            "projector_lr": 1e-4,
            "save_steps": Commented(1000, "optimizer steps"),
            "save_total_limit": Commented(5, "checkpoints kept"),
        },
    )


_QWEN_TARGETS = Commented(
    r".*\.(q_proj|k_proj|v_proj|up_proj|gate_proj)",
    "c_attn|w1|w2 in the first Qwen's names",
)
CLIP_QWEN_RECIPES = (
    _clip_qwen(
        "clip_qwen_7b_lora", "CLIP ViT-L/14 + Qwen-7B-Chat, LoRA and the projector.", "CLIP-Qwen-7B", 256, _QWEN_TARGETS
    ),
    _clip_qwen(
        "clip_qwen2_5_7b_lora",
        "CLIP ViT-L/14 + Qwen2.5-7B, LoRA and the projector.",
        "CLIP-Qwen2.5-7B",
        256,
        _QWEN_TARGETS,
    ),
    _clip_qwen(
        "siglip_qwen2_5_7b_lora",
        "SigLIP-so400m + Qwen2.5-7B, LoRA and the projector.",
        "SigLIP-Qwen2.5-7B",
        729,
        _QWEN_TARGETS,
    ),
)


# ---------------------------------------------------------------- LLaVA: CLIP ViT-L/14-336 + Qwen2.5
def _llava(stem: str, title: str, base: str, settings: Mapping[str, Any], **row) -> Recipe:
    return Recipe(
        stem,
        title,
        LLAVA_150K,
        base,
        folder="llava_clip_qwen2_5",
        processes=4,
        deepspeed="deepspeed_zero2",
        hardware=f"4 GPUs of 80 GB {PLANNED}",
        notes={
            "export": "--format llava writes what LlavaForConditionalGeneration opens; --adapter-only a PEFT adapter"
        },
        settings={
            "max_tiles": Commented(1, "the whole image: 576 tokens"),
            "max_length": Commented(2048, "tokens; the image takes 576"),
            **batch_settings(4, 2, 4),
            "num_workers": 10,
            **settings,
        },
        **row,
    )


LLAVA_RECIPES = tuple(
    recipe
    for size, base in (("3b", "LLaVA-Qwen2.5-3B"), ("7b", "LLaVA-Qwen2.5-7B"))
    for recipe in (
        _llava(
            f"llava_qwen2_5_{size}_lora_frozen_projector",
            f"LLaVA with Qwen2.5-{size.upper()}: LoRA on the LLM alone (use_lora, projector frozen).",
            base,
            {"lr": 2e-4},
            llm="lora",
            projector="frozen",
        ),
        _llava(
            f"llava_qwen2_5_{size}_lora",
            f"LLaVA with Qwen2.5-{size.upper()}: LoRA on the LLM, projector whole (use_lora).",
            base,
            {"lr": 2e-4, "projector_lr": 2e-5},
            llm="lora",
        ),
        _llava(
            f"llava_qwen2_5_{size}_freeze_vision",
            f"LLaVA with Qwen2.5-{size.upper()}: projector and LLM whole (freeze_vision).",
            base,
            {"lr": 2e-5},
            llm="all",
        ),
        _llava(
            f"llava_qwen2_5_{size}_full",
            f"LLaVA with Qwen2.5-{size.upper()}: everything trains (none is frozen).",
            base,
            {"lr": 2e-5, "visual_encoder_lr": 2e-6},
            llm="all",
            visual_encoder="all",
        ),
    )
)
