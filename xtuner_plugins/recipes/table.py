"""One row per recipe: what it trains, on what, with which settings. `write.py` makes `configs/` of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .bases import BASES, Base


@dataclass(frozen=True)
class Commented:
    """A setting's value with the comment behind it."""

    value: Any
    comment: str


@dataclass(frozen=True)
class Data:
    """Training data as a recipe names it.

    Attributes:
        text: line of the docstring.
        paths: annotation files.
        folders: image folder of each.
    """

    text: str
    paths: tuple[str, ...]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A leaf of `configs/`.

    Attributes:
        stem: name of the file.
        title: first line of the docstring.
        data: what it trains on.
        base: key of `BASES`, whose architecture it trains.
        starts_from: directory to start from; None is the base's own.
        origin: where that directory comes from, lines of the docstring; None gives the base's commands.
        folder: of the leaf below `configs/`.
        visual_encoder, projector, llm: `frozen`, `all` or `lora`.
        quantized: parts held in 4 bits.
        packed: several samples per row.
        processes: on one node.
        deepspeed: `--deepspeed` of the launch line.
        hardware: line of the docstring.
        notes: further lines of the docstring by label.
        settings: values that differ from `SETTINGS`, and comments.
    """

    stem: str
    title: str
    data: Data
    base: str
    starts_from: str | None = None
    origin: tuple[str, ...] | None = None
    folder: str = ""
    visual_encoder: str = "frozen"
    projector: str = "all"
    llm: str = "frozen"
    quantized: tuple[str, ...] = ()
    packed: bool = False
    processes: int = 1
    deepspeed: str | None = None
    hardware: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Base:
        """The published model at its true size."""
        return BASES[self.base]

    @property
    def path(self) -> str:
        """Of the leaf in the checkout."""
        return "/".join(filter(None, ("configs", self.folder, f"{self.stem}.py")))

    @property
    def launch(self) -> str:
        """Command that starts it."""
        if self.folder == "toy":
            return f"python tools/train.py {self.path}"
        processes = f"NPROC_PER_NODE={self.processes} " if self.processes > 1 else ""
        deepspeed = f" --deepspeed {self.deepspeed}" if self.deepspeed else ""
        return f"{processes}xtuner train {self.path}{deepspeed}"

    def parts(self, state: str) -> list[str]:
        """Parts in a state (`all`, `lora`, `frozen`), in the order of a sample's way."""
        return [part for part in ("visual_encoder", "projector", "llm") if getattr(self, part) == state]


# Settings in the order of a leaf; an empty name is an empty line. A recipe's own values replace these.
SETTINGS: dict[str, Any] = {
    "max_tiles": Commented(12, "+ thumbnail"),
    "max_length": Commented(4096, "tokens; 13 tiles take 3328"),
    "template": Commented(None, "None: the one that the base names"),
    "repeat_times": Commented(None, "how often each file is used per epoch"),
    "dtype": Commented("auto", "bfloat16 where the device has it"),
    "gradient_checkpointing": Commented(True, "less memory, about a third more time"),
    "freeze_visual_encoder": Commented(None, "False trains the encoder whole"),
    "lora_rank": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.05,
    "lora_targets": Commented(None, "None: every linear layer of a block; or names, or a regular expression"),
    "quant_type": "nf4",
    "pack_tokens": 8192,
    "pack_tiles": 26,
    "batch_size": 1,
    "accumulative_counts": Commented(16, "micro-batches of an optimizer step"),
    "num_workers": 4,
    "max_epochs": 1,
    "max_steps": Commented(None, "optimizer steps; ends the run before max_epochs"),
    "lr": 1e-4,
    "visual_encoder_lr": Commented(None, "None: lr, here and below"),
    "projector_lr": None,
    "llm_lr": None,
    "lora_lr": None,
    "visual_encoder_layer_decay": Commented(1.0, "factor on the learning rate per block, from the last to the first"),
    "betas": (0.9, 0.999),
    "weight_decay": Commented(0.0, "not on norms and biases"),
    "max_grad_norm": 1.0,
    "warmup_ratio": Commented(0.03, "share of the optimizer steps"),
    "save_steps": Commented(500, "optimizer steps"),
    "save_total_limit": Commented(2, "checkpoints kept"),
}


def setting_of(recipe: Recipe, name: str) -> Any:
    """A setting's value in a recipe."""
    setting = recipe.settings.get(name, SETTINGS[name])
    return setting.value if isinstance(setting, Commented) else setting


PLANNED = "planned; not run yet at this size"
LLAVA_PRETRAIN = Data(
    "LLaVA-Pretrain 558K (blip_laion_cc_sbu_558k.json and its images)",
    ("data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",),
    ("data/LLaVA-Pretrain/images",),
)
LLAVA_665K = Data(
    "LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)",
    ("data/LLaVA-Instruct/llava_v1_5_mix665k.json",),
    ("data/LLaVA-Instruct/images",),
)
CC3M_595K = Data(
    "LLaVA-CC3M-Pretrain-595K (chat.json and its images)",
    ("data/LLaVA-CC3M-Pretrain-595K/chat.json",),
    ("data/LLaVA-CC3M-Pretrain-595K/images",),
)
LLAVA_150K = Data(
    "LLaVA-Instruct-150K on COCO train2017",
    ("data/LLaVA-Instruct-150K/llava_instruct_150k.json",),
    ("data/coco/train2017",),
)
LLAVA_80K = Data(
    "LLaVA-Instruct-80K on COCO train2017",
    ("data/LLaVA-Instruct-150K/llava_instruct_80k.json",),
    ("data/coco/train2017",),
)
CHINESE_PRETRAIN = Data(
    "chinese_llava captions in Chinese, as tools/prepare_data.py writes them",
    ("data/chinese_llava/pretrain.jsonl",),
    ("data/chinese_llava/images",),
)
CHINESE_SFT = Data(
    "minimind-v conversations in Chinese, as tools/prepare_data.py writes them",
    ("data/minimind-v/sft.jsonl",),
    ("data/minimind-v/images",),
)
CAPTIONS = Data(
    "COCO detail_23k and complex_reasoning_77k, AI Challenger captions (Chinese)",
    (
        "data/LLaVA-Instruct-150K/detail_23k.json",
        "data/LLaVA-Instruct-150K/complex_reasoning_77k.json",
        "data/ai_challenger/train.jsonl",
    ),
    ("data/coco/train2017", "data/coco/train2017", "data/ai_challenger/images"),
)
MINE = Data(
    "data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images",
    ("data/mine/train.jsonl",),
    ("data/mine/images",),
)
TOY = Data(
    "generated images with questions, half of which need the resolution",
    ("work_dirs/quickstart/data/train.jsonl",),
    ("work_dirs/quickstart/data/images",),
)


def batch_settings(size: int, accumulation: int, processes: int, unit: str = "samples") -> dict[str, Any]:
    """`batch_size` and `accumulative_counts`, with the samples of a step in the comment."""
    gpus = f"{processes} GPU" + ("s" if processes > 1 else "")
    total = size * accumulation * processes
    return {
        "batch_size": Commented(size, f"x {accumulation} accumulation x {gpus} = {total} {unit} per step"),
        "accumulative_counts": Commented(accumulation, "micro-batches of an optimizer step"),
    }


# ---------------------------------------------------------------- InternViT-300M + Qwen2.5-1.5B, from parts
_ROOT = "InternViT-300M-Qwen2.5-1.5B"
_STAGE_1 = dict(starts_from="exports/pretrain_mlp", base=_ROOT)
_EXPORTED = (
    "exports/pretrain_mlp, the exported stage 1:",
    "python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp",
)
_OWN = ("exports/pretrain_mlp (the exported stage 1), or any official InternVL directory with a Qwen2 LLM",)

ROOT_RECIPES = (
    Recipe(
        "pretrain_mlp",
        "Stage 1, MLP warm-up: InternViT-300M + Qwen2.5-1.5B, the projector learns to speak the LLM's language.",
        LLAVA_PRETRAIN,
        _ROOT,
        processes=4,
        deepspeed="deepspeed_zero3",
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
        deepspeed="deepspeed_zero3",
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
            "note": "attention over a pack takes a dense mask; lengths are measured once, before the first step",
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
    row.setdefault("origin", (f"{row['starts_from']}, the exported warm-up",))
    return Recipe(
        f"toy_{stem}",
        f"Toy twin of configs/{stem}.py: {title}, minutes on 2 CPU cores.",
        base=_ROOT,
        folder="toy",
        hardware="2 CPU cores",
        **{**row, "settings": {**own, **row["settings"]}},
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
)


# ---------------------------------------------------------------- SigLIP + Qwen2.5-0.5B
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
        "SigLIP + Qwen2.5-0.5B, as siglip_sft_lora.py with the LLM in 4 bits.",
        LLAVA_150K,
        stage=2,
        llm="lora",
        quantized=("llm",),
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


# ---------------------------------------------------------------- InternVL as released
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
            quantized=("visual_encoder", "llm"),
            processes=processes,
            hardware=hardware,
            settings=lora,
            **{
                **row,
                "deepspeed": "deepspeed_zero2" if large else row["deepspeed"],
            },  # packed weights aren't partitioned
        ),
    )


RECIPES: tuple[Recipe, ...] = (
    *ROOT_RECIPES,
    *TOY_RECIPES,
    *SIGLIP_RECIPES,
    *CLIP_QWEN_RECIPES,
    *LLAVA_RECIPES,
    *(recipe for row in _RELEASED for recipe in _released(*row)),
)
