"""Recipes of InternViT-300M + Qwen2.5-1.5B, built from parts, and their toy twins."""

from __future__ import annotations

from .data import LLAVA_665K, LLAVA_PRETRAIN, MINE, MY_PAIRS, TOY
from .recipe import MPO, PLANNED, Commented, Data, Recipe, batch_settings

_ROOT = "InternViT-300M-Qwen2.5-1.5B"
_STAGE_1 = dict(starts_from="exports/pretrain_mlp", base=_ROOT)
_EXPORTED = (
    "exports/pretrain_mlp, the exported stage 1:",
    "python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp",
)
_STAGE_2 = dict(starts_from="exports/mine", base=_ROOT)
_TUNED = (
    "exports/mine, an exported fine-tuned model, or any official InternVL directory with a Qwen2 LLM:",
    "python tools/convert_to_official.py configs/finetune_lora.py CHECKPOINT exports/mine",
)
_OWN = ("exports/pretrain_mlp (the exported stage 1), or any official InternVL directory with a Qwen2 LLM",)

ROOT_RECIPES = (
    Recipe(
        "pretrain_mlp",
        "Stage 1, MLP warm-up: InternViT-300M + Qwen2.5-1.5B, the projector learns to speak the LLM's language.",
        LLAVA_PRETRAIN,
        _ROOT,
        processes=4,
        hardware=f"4 GPUs of 80 GB {PLANNED}",
        notes={"less memory": "batch_size = 1 with accumulative_counts = 64"},
        settings={**batch_settings(4, 16, 4), "lr": 1e-3},
    ),
    Recipe(
        "pretrain_vit_mlp",
        "Stage 1.5: vision encoder and projector learn together from captions, the LLM stays frozen.",
        LLAVA_PRETRAIN,
        visual_encoder="all",
        processes=8,
        hardware=f"8 GPUs of 80 GB {PLANNED}",
        notes={"less memory": "batch_size = 1 with accumulative_counts = 32"},
        origin=_EXPORTED,
        settings={**batch_settings(2, 16, 8), "lr": 1e-5, "projector_lr": 2e-4, "visual_encoder_layer_decay": 0.9},
        **_STAGE_1,
    ),
    Recipe(
        "finetune_full",
        "Stage 2, full fine-tuning: projector and LLM learn from instructions; the vision encoder joins on request.",
        LLAVA_665K,
        llm="all",
        processes=8,
        deepspeed="deepspeed_zero3",
        hardware=f"8 GPUs of 80 GB {PLANNED}",
        notes={"less memory": "configs/finetune_lora.py"},
        origin=_EXPORTED,
        settings={
            **batch_settings(2, 8, 8),
            "lr": 2e-5,
            "freeze_visual_encoder": Commented(True, "False trains the encoder too"),
        },
        **_STAGE_1,
    ),
    Recipe(
        "finetune_packed",
        "Stage 2 in packs: as configs/finetune_full.py, several samples in a row of 8192 tokens, hardly any padding.",
        LLAVA_665K,
        llm="all",
        packed=True,
        processes=8,
        deepspeed="deepspeed_zero3",
        hardware=f"8 GPUs of 80 GB {PLANNED}",
        notes={
            "less memory": "pack_tokens = 4096, pack_tiles = 13",
            "note": "lengths are measured once, before the first step",
        },
        origin=_EXPORTED,
        settings={
            **batch_settings(1, 4, 8, "packs"),
            "lr": 2e-5,
            "freeze_visual_encoder": Commented(True, "False trains the encoder too"),
        },
        **_STAGE_1,
    ),
    Recipe(
        "finetune_lora",
        "LoRA fine-tuning on one's own jsonl: the projector trains whole, the LLM through low-rank adapters.",
        MINE,
        llm="lora",
        hardware=f"1 GPU of 24 GB {PLANNED}",
        notes={"less memory": "max_tiles = 6 with max_length = 2560"},
        origin=_OWN,
        settings=batch_settings(1, 16, 1),
        **_STAGE_1,
    ),
    Recipe(
        "finetune_qlora",
        "QLoRA fine-tuning on one's own jsonl: as configs/finetune_lora.py, with the LLM's linear layers in 4 bits.",
        MINE,
        llm="lora",
        quantized=("llm",),
        hardware=f"1 GPU of 16 GB {PLANNED}",
        notes={"less memory": "max_tiles = 6 with max_length = 2560"},
        origin=_OWN,
        settings=batch_settings(1, 16, 1),
        **_STAGE_1,
    ),
    Recipe(
        "finetune_dpo_lora",
        "DPO with LoRA: a tuned model learns to prefer the chosen answers of one's own pairs.",
        MY_PAIRS,
        llm="lora",
        projector="frozen",
        objectives={"dpo": 1.0},
        hardware=f"1 GPU of 24 GB {PLANNED}",
        notes={"less memory": "max_tiles = 6 with max_length = 2560"},
        origin=_TUNED,
        settings={**batch_settings(1, 32, 1), "lr": 1e-5},
        **_STAGE_2,
    ),
    Recipe(
        "finetune_dpo_qlora",
        "DPO with QLoRA: as configs/finetune_dpo_lora.py, with the LLM's linear layers in 4 bits.",
        MY_PAIRS,
        llm="lora",
        projector="frozen",
        quantized=("llm",),
        objectives={"dpo": 1.0},
        hardware=f"1 GPU of 16 GB {PLANNED}",
        notes={"less memory": "max_tiles = 6 with max_length = 2560"},
        origin=_TUNED,
        settings={**batch_settings(1, 32, 1), "lr": 1e-5},
        **_STAGE_2,
    ),
    Recipe(
        "finetune_mpo_full",
        "MPO, full: projector and LLM learn from pairs what is better, what is good, and how it is written.",
        MY_PAIRS,
        llm="all",
        objectives=MPO,
        processes=8,
        deepspeed="deepspeed_zero2",
        hardware=f"8 GPUs of 80 GB {PLANNED}",
        notes={
            "memory": "the reference is a frozen copy of projector and LLM on each GPU",
            "less memory": "precompute_reference = True keeps no copy, and lets ZeRO-3 split all that trains",
        },
        origin=_TUNED,
        settings={**batch_settings(1, 32, 8), "lr": 1e-6},
        **_STAGE_2,
    ),
)


# ---------------------------------------------------------------- Toy twins
def _toy(stem: str, title: str, **row) -> Recipe:
    own = {
        "max_tiles": Commented(6, "+ thumbnail"),
        "max_length": Commented(512, "tokens; 7 tiles of 112 px take 112"),
        "dtype": Commented("float32", ""),
        "batch_size": Commented(16, "x 1 accumulation x 1 process"),
        "accumulative_counts": Commented(1, "micro-batches of an optimizer step"),
        "gradient_checkpointing": Commented(False, "these sizes need no saving"),
        "num_workers": 2,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
    }
    row = {"data": TOY, "starts_from": "work_dirs/quickstart/pretrain_mlp", **row}
    row.setdefault("origin", (f"{row['starts_from']}, the exported warm-up:", "python tools/quickstart.py"))
    return Recipe(
        f"toy_{stem}",
        f"Toy twin of configs/{stem}.py: {title}, minutes on 2 CPU cores.",
        base=_ROOT,
        folder="toy",
        hardware="2 CPU cores",
        **{**row, "settings": {**own, **row["settings"]}},
    )


_PAIRS = dict(
    data=Data(
        "generated images, a quarter of them too small to read (xtuner_plugins/toy/preference_data.py)",
        ("work_dirs/preference/data/pairs.jsonl",),
        ("work_dirs/preference/data/images",),
    ),
    starts_from="work_dirs/quickstart/model",
    origin=("work_dirs/quickstart/model, the quick start's export:", "python tools/quickstart.py"),
)

TOY_RECIPES = (
    _toy(
        "pretrain_mlp",
        "the projector alone",
        data=Data("generated images with captions", ("work_dirs/quickstart/data/pretrain.json",), TOY.folders),
        starts_from="work_dirs/quickstart/base",
        origin=("work_dirs/quickstart/base, assembled by the quick start from parts that it pre-trains",),
        settings={
            "lr": 3e-3,
            "warmup_ratio": Commented(
                0.2, "share of the optimizer steps: 20 of 100, because the projector starts from random weights"
            ),
        },
    ),
    _toy("finetune_full", "projector and LLM", llm="all", settings={"lr": 2e-3, "max_epochs": 3}),
    _toy(
        "finetune_packed",
        "projector and LLM in packs",
        llm="all",
        packed=True,
        settings={
            "lr": 2e-3,
            "max_epochs": 3,
            "pack_tokens": 2048,
            "pack_tiles": 96,
            "batch_size": Commented(1, "pack x 1 accumulation x 1 process"),
        },
    ),
    _toy("finetune_lora", "projector, and LoRA on the LLM", llm="lora", settings={"lr": 1e-3}),
    _toy(
        "finetune_qlora",
        "projector, and LoRA on an LLM in 4 bits",
        llm="lora",
        quantized=("llm",),
        settings={"lr": 1e-3},
    ),
    _toy(
        "finetune_mpo_full",
        "projector and LLM on preference pairs",
        llm="all",
        objectives=MPO,
        settings={"lr": 4e-4},
        **_PAIRS,
    ),
    _toy(
        "finetune_dpo_lora",
        "LoRA on the LLM on preference pairs",
        llm="lora",
        projector="frozen",
        objectives={"dpo": 1.0},
        settings={"lr": 1e-3},
        **_PAIRS,
    ),
)
