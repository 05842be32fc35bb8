"""The published models that configs start from: their parts at true size, as the fields of `config.json` say them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..families import FLASH
from ..hub.constants import PROJECTOR_TYPES
from ..settings import leaves, read_config


@dataclass(frozen=True)
class Base:
    """A directory below `models/` that training starts from."""

    name: str  # of the directory
    encoder: str  # key of `ENCODERS`
    llm: str  # key of `LLMS`
    projector_type: str | None = None  # of `build_base_model.py --projector-type`; None takes the encoder's own
    hub: str | None = None  # `org/model` of a published whole model; None for one that is assembled from its parts
    template: str = "internvl2_5"  # conversation template of the published directory
    flash: bool = False  # it has the second projector and the router of a Flash model

    @property
    def config(self) -> dict[str, Any]:
        """Fields of its `config.json` that decide its shape."""
        fewer = {"vocab_size": 151655} if self.name == "InternVL2-1B" else {}  # later ones have more special tokens
        return dict(
            vision_config=dict(ENCODERS[self.encoder]),
            llm_config={**LLMS[self.llm], **fewer},
            downsample_ratio=1.0 if self.projector_type == "mlp" else 0.5,
            projector_type=self.projector_type or PROJECTOR_TYPES[0],
            select_layer=-2 if self.projector_type else -1,
            **(FLASH if self.flash else {}),
        )


# One row per LLM, smaller ones first: its sizes (the last: token rows of a base, the nine image tokens included); then
# the encoder and the names of the models that OpenGVLab has published with both. InternLM2's LLMs are read here in the
# form of Llama (InternLM2.5 has the same sizes), Qwen's first in the form of Qwen2.
_TABLE = """
Qwen2.5-0.5B   qwen2      896  4864 24 14  2 151674 300M InternVL2-1B InternVL2_5-1B InternVL3-1B
Qwen3-0.6B     qwen3     1024  3072 28 16  8 151936 300M InternVL3_5-1B
Qwen2.5-1.5B   qwen2     1536  8960 28 12  2 151674 300M InternVL3-2B
Qwen3-1.7B     qwen3     2048  6144 28 16  8 151936 300M InternVL3_5-2B
InternLM2-1.8B llama     2048  8192 24 16  8  92553 300M Mini-InternVL-Chat-2B-V1-5 InternVL2-2B InternVL2_5-2B
Qwen2.5-3B     qwen2     2048 11008 36 16  2 151674 300M InternVL2_5-4B
Phi-3-mini     phi3      3072  8192 32 32 32  32020 300M Mini-InternVL-Chat-4B-V1-5 InternVL2-4B
Qwen3-4B       qwen3     2560  9728 36 32  8 151936 300M InternVL3_5-4B
Qwen-7B        qwen2     4096 11008 32 32 32 151860
Qwen2.5-7B     qwen2     3584 18944 28 28  4 151674 300M InternVL3-8B
InternLM2.5-7B llama     4096 14336 32 32  8  92553 300M InternVL2-8B InternVL2_5-8B
Qwen3-8B       qwen3     4096 12288 36 32  8 151936 300M InternVL3_5-8B
Qwen2.5-14B    qwen2     5120 13824 48 40  8 151674 300M InternVL3-14B
Qwen3-14B      qwen3     5120 17408 40 40  8 151936 300M InternVL3_5-14B
InternLM2-20B  llama     6144 16384 48 48  8  92553 6B   InternVL-Chat-V1-5 InternVL2-26B InternVL2_5-26B
Qwen3-30B-A3B  qwen3_moe 2048  6144 48 32  4 151936 300M InternVL3_5-30B-A3B
Qwen2.5-32B    qwen2     5120 27648 64 40  8 151674 6B   InternVL3-38B
"""
_ROWS = [row.split() for row in _TABLE.strip().splitlines()]
_SIZES = """model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    vocab_size""".split()
_QWEN3, _EXPERTS = dict(head_dim=128), dict(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
_OTHERS = {"qwen3": _QWEN3, "qwen3_moe": {**_QWEN3, **_EXPERTS}}
_OWN_TEMPLATES = {"qwen2": "Hermes-2", "llama": "internlm2-chat", "phi3": "phi3-chat"}  # up to InternVL2


def _config(*sizes: str | int, **others: Any) -> dict[str, Any]:
    return dict(zip(_SIZES, sizes, strict=False), **others)


def _released(name: str, encoder: str, llm: str) -> Base:
    is_early = name.startswith("InternVL2-") or name.endswith("V1-5")
    own = {"template": _OWN_TEMPLATES[LLMS[llm]["model_type"]]} if is_early else {}
    return Base(name, encoder, llm, hub=f"OpenGVLab/{name}", **own)


_VIT = dict(norm_type="layer_norm", qkv_bias=True, qk_normalization=False)
_VIT_6B = dict(norm_type="rms_norm", qkv_bias=False, qk_normalization=True)
ENCODERS: dict[str, dict[str, Any]] = {
    "300M": _config("intern_vit_6b", 1024, 4096, 24, 16, image_size=448, patch_size=14, **_VIT),
    "6B": _config("intern_vit_6b", 3200, 12800, 45, 25, image_size=448, patch_size=14, **_VIT_6B),
    "CLIP-L": _config("clip_vision_model", 1024, 4096, 24, 16, image_size=224, patch_size=14),
    "CLIP-L-336": _config("clip_vision_model", 1024, 4096, 24, 16, image_size=336, patch_size=14),
    "SigLIP-so400m": _config("siglip_vision_model", 1152, 4304, 27, 16, image_size=384, patch_size=14),
}
LLMS: dict[str, dict[str, Any]] = {
    row[0]: _config(row[1], *map(int, row[2:8]), **_OTHERS.get(row[1], {})) for row in _ROWS
}
BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base("InternViT-300M-Qwen2.5-1.5B", "300M", "Qwen2.5-1.5B"),
        Base("SigLIP-Qwen2.5-0.5B", "SigLIP-so400m", "Qwen2.5-0.5B", "bilinear_mlp"),
        Base("CLIP-Qwen-7B", "CLIP-L", "Qwen-7B", "mlp"),
        Base("SigLIP-Qwen-7B", "SigLIP-so400m", "Qwen-7B", "mlp"),
        Base("LLaVA-Qwen2.5-3B", "CLIP-L-336", "Qwen2.5-3B", "mlp"),
        Base("InternVL3_5-8B-Flash-base", "300M", "Qwen3-8B", flash=True),
        *(_released(name, row[8], row[0]) for row in _ROWS for name in row[9:]),
    )
}
# Records of annotation files as published, rounded.
NUM_SAMPLES = {
    "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json": 558_000,
    "data/LLaVA-Instruct/llava_v1_5_mix665k.json": 665_000,
    "data/LLaVA-CC3M-Pretrain-595K/chat.json": 595_000,
    "data/LLaVA-Instruct-150K/llava_instruct_150k.json": 158_000,
    "data/LLaVA-Instruct-150K/llava_instruct_80k.json": 80_000,
}


_LARGE = ("-26B", "-38B", "-30B-A3B", "-Chat-V1-5")


def other_rate(model: Mapping[str, Any], rate: float) -> float | None:
    """The rate for fine-tuning the released base of a config's `model`; None where it is ``rate``, or none is known.

    For the whole LLM it is that of the authors' second fine-tuning; InternVL3.5, which has no scripts, takes that of
    InternVL3. LoRA learns best at several times as much.
    """
    has_lora = bool(model.get("llm_lora"))
    if "objectives" in model or not (has_lora or model.get("freeze_llm") is False):
        return None
    row = known_base(model["base"])
    if row is None or not row.hub:
        return None
    small, large = (1e-4, 5e-5) if has_lora else (4e-5, 2e-5)
    known = large if row.name.endswith(_LARGE) else small
    if not has_lora and row.name.startswith("InternVL3"):
        known = 1e-5 if row.name.endswith("-1B") else 2e-5
    return None if known == rate else known


def known_base(path: str) -> Base | None:
    """The row of `BASES` that a config's `model.base` means by its name, wherever the directory will lie, or None.

    ``exports/NAME`` is what the shipped config NAME exports, ``exports/mine`` the 2B that the README trains.
    """
    name = Path(path).name
    if path.startswith("exports/") and name in leaves():
        return known_base(read_config(name).model.base)
    name = "InternVL3_5-2B" if path == "exports/mine" else name
    return BASES.get(name) or BASES.get(name.removesuffix("-Instruct").removesuffix("-Pretrained"))  # of one release
