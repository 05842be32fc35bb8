"""Recipes of the InternVL models as released: full, LoRA and QLoRA of each, MPO of those whose authors have it."""

from __future__ import annotations

from .data import LLAVA_665K, MMPR
from .recipe import MPO, PLANNED, Commented, Recipe, batch_settings

# (folder, stem of the model, base, GPUs for full training, ZeRO stage, GB of a GPU)
_RELEASED = (
    ("internvl_v1_5", "internvl_v1_5_internlm2_2b", "Mini-InternVL-Chat-2B-V1-5", 8, 1),
    ("internvl_v1_5", "internvl_v1_5_phi3_4b", "Mini-InternVL-Chat-4B-V1-5", 8, 1),
    ("internvl_v1_5", "internvl_v1_5_internlm2_26b", "InternVL-Chat-V1-5", 8, 3),
    ("internvl_v2", "internvl_v2_qwen2_1b", "InternVL2-1B", 8, 1),
    ("internvl_v2", "internvl_v2_internlm2_2b", "InternVL2-2B", 8, 1),
    ("internvl_v2", "internvl_v2_phi3_4b", "InternVL2-4B", 8, 1),
    ("internvl_v2", "internvl_v2_internlm2_5_8b", "InternVL2-8B", 8, 2),
    ("internvl_v2", "internvl_v2_internlm2_26b", "InternVL2-26B", 8, 3),
    ("internvl_v2_5", "internvl_v2_5_qwen2_5_1b", "InternVL2_5-1B", 8, 1),
    ("internvl_v2_5", "internvl_v2_5_internlm2_5_2b", "InternVL2_5-2B", 8, 1),
    ("internvl_v2_5", "internvl_v2_5_qwen2_5_4b", "InternVL2_5-4B", 8, 1),
    ("internvl_v2_5", "internvl_v2_5_internlm2_5_8b", "InternVL2_5-8B", 8, 2),
    ("internvl_v2_5", "internvl_v2_5_internlm2_5_26b", "InternVL2_5-26B", 8, 3),
    ("internvl_v3", "internvl_v3_qwen2_5_1b", "InternVL3-1B", 8, 1),
    ("internvl_v3", "internvl_v3_qwen2_5_2b", "InternVL3-2B", 8, 1),
    ("internvl_v3", "internvl_v3_qwen2_5_8b", "InternVL3-8B", 8, 2),
    ("internvl_v3", "internvl_v3_qwen2_5_14b", "InternVL3-14B", 8, 3),
    ("internvl_v3", "internvl_v3_qwen2_5_38b", "InternVL3-38B", 16, 3),
    ("internvl_v3_5", "internvl_v3_5_qwen3_1b", "InternVL3_5-1B", 8, 1),
    ("internvl_v3_5", "internvl_v3_5_qwen3_2b", "InternVL3_5-2B", 8, 1),
    ("internvl_v3_5", "internvl_v3_5_qwen3_4b", "InternVL3_5-4B", 8, 1),
    ("internvl_v3_5", "internvl_v3_5_qwen3_8b", "InternVL3_5-8B", 8, 2),
    ("internvl_v3_5", "internvl_v3_5_qwen3_14b", "InternVL3_5-14B", 8, 3),
    ("internvl_v3_5", "internvl_v3_5_qwen3_30b_a3b", "InternVL3_5-30B-A3B", 16, 3),
)


def _released(folder: str, stem: str, base: str, processes: int, stage: int) -> tuple[Recipe, ...]:
    """Full, LoRA and QLoRA of a released model, with XTuner's schedule for the same sizes."""
    large = stage == 3
    length = 4096 if base == "InternVL-Chat-V1-5" else 8192
    common = {
        "max_length": Commented(length, "tokens; 13 tiles take 3328"),
        "lr": 1e-6,
        "weight_decay": Commented(0.01 if base == "InternVL-Chat-V1-5" else 0.05, "not on norms and biases"),
        "save_steps": Commented(1000, "optimizer steps"),
        "save_total_limit": Commented(1, "checkpoints kept"),
        "lora_rank": 128,
        "lora_alpha": 256,
    }
    row = dict(data=LLAVA_665K, base=base, folder=folder, deepspeed=f"deepspeed_zero{stage}")
    hardware = f"{processes} GPUs of 80 GB {PLANNED}"
    lora = {**common, **(batch_settings(2, 4, processes) if large else batch_settings(8, 2, processes))}
    return (
        Recipe(
            f"{stem}_finetune",
            f"{base}, full fine-tuning: projector and LLM; the vision encoder joins on request.",
            llm="all",
            processes=processes,
            hardware=hardware,
            settings={
                **common,
                **(batch_settings(1, 8, processes) if large else batch_settings(4, 4, processes)),
                "freeze_visual_encoder": Commented(True, "False trains the encoder too"),
            },
            **row,
        ),
        Recipe(
            f"{stem}_lora_finetune",
            f"{base}, LoRA: adapters on the LLM, the projector whole.",
            llm="lora",
            processes=processes,
            hardware=hardware,
            settings=lora,
            **row,
        ),
        Recipe(
            f"{stem}_qlora_finetune",
            f"{base}, QLoRA: adapters on an LLM in 4 bits, the projector whole.",
            llm="lora",
            quantized=("llm",),
            processes=processes,
            hardware=hardware,
            settings=lora,
            **{
                **row,
                "deepspeed": "deepspeed_zero2" if large else row["deepspeed"],
            },  # packed weights aren't partitioned
        ),
    )


_WITH_MPO = ("internvl_v2_5", "internvl_v3")


def _mpo(folder: str, stem: str, base: str, processes: int, stage: int) -> Recipe:
    """Mixed preference optimization, with the settings of the authors' script for InternVL2_5-4B."""
    return Recipe(
        f"{stem}_mpo",
        f"{base}, MPO: projector and LLM learn from MMPR's pairs; the vision encoder joins on request.",
        MMPR,
        base=base,
        folder=folder,
        llm="all",
        objectives=MPO,
        processes=processes,
        deepspeed=f"deepspeed_zero{stage}",
        hardware=f"{processes} GPUs of 80 GB {PLANNED}",
        settings={
            "max_length": Commented(6544, "tokens; 13 tiles take 3328"),
            "freeze_visual_encoder": Commented(True, "False trains the encoder too, as the authors do"),
            "lr": 1e-6,
            "weight_decay": Commented(0.05, "not on norms and biases"),
            **batch_settings(1, 256 // processes, processes),
            # ZeRO-3 can't split a frozen copy, and at this size there is no room for a whole one.
            **({"precompute_reference": True} if stage == 3 else {}),
        },
    )


INTERNVL_RECIPES = (
    *(recipe for row in _RELEASED for recipe in _released(*row)),
    *(_mpo(*row) for row in _RELEASED if row[0] in _WITH_MPO),
)
