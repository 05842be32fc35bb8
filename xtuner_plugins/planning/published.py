"""The published models that configs start from: their parts at true size, as the fields of `config.json` say them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..families import FLASH
from ..hub.constants import PROJECTOR_TYPES


@dataclass(frozen=True)
class Base:
    """A directory below `models/` that training starts from."""

    name: str  # of the directory
    encoder: str  # key of `ENCODERS`
    llm: str  # key of `LLMS`
    vocab_size: int  # token rows of the directory, the nine image tokens included
    hub: str | None = None  # `org/model` of a published whole model; None for one that is assembled from its parts
    projector_type: str | None = None  # of `build_base_model.py --projector-type`; None takes the encoder's own
    template: str = "internvl2_5"  # conversation template of the published directory
    select_layer: int = -1
    flash: bool = False  # it has the second projector and the router of a Flash model

    @property
    def config(self) -> dict[str, Any]:
        """Fields of its `config.json` that decide its shape."""
        return dict(
            vision_config=dict(ENCODERS[self.encoder]),
            llm_config={**LLMS[self.llm], "vocab_size": self.vocab_size},
            downsample_ratio=1.0 if self.projector_type == "mlp" else 0.5,
            projector_type=self.projector_type or PROJECTOR_TYPES[0],
            select_layer=self.select_layer,
            **(FLASH if self.flash else {}),
        )


_SIZES = "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()


def _config(*sizes: str | int, **others: Any) -> dict[str, Any]:
    return dict(zip(_SIZES, sizes, strict=False), **others)


_VIT = dict(norm_type="layer_norm", qkv_bias=True, qk_normalization=False)
_VIT_6B = dict(norm_type="rms_norm", qkv_bias=False, qk_normalization=True)
_EXPERTS = dict(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
ENCODERS: dict[str, dict[str, Any]] = {
    "300M": _config("intern_vit_6b", 1024, 4096, 24, 16, image_size=448, patch_size=14, **_VIT),
    "6B": _config("intern_vit_6b", 3200, 12800, 45, 25, image_size=448, patch_size=14, **_VIT_6B),
    "CLIP-L": _config("clip_vision_model", 1024, 4096, 24, 16, image_size=224, patch_size=14),
    "CLIP-L-336": _config("clip_vision_model", 1024, 4096, 24, 16, image_size=336, patch_size=14),
    "SigLIP-so400m": _config("siglip_vision_model", 1152, 4304, 27, 16, image_size=384, patch_size=14),
}
LLMS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": _config("qwen2", 896, 4864, 24, 14, 2),
    "Qwen2.5-1.5B": _config("qwen2", 1536, 8960, 28, 12, 2),
    "Qwen2.5-3B": _config("qwen2", 2048, 11008, 36, 16, 2),
    "Qwen2.5-7B": _config("qwen2", 3584, 18944, 28, 28, 4),
    "Qwen2.5-14B": _config("qwen2", 5120, 13824, 48, 40, 8),
    "Qwen2.5-32B": _config("qwen2", 5120, 27648, 64, 40, 8),
    "Qwen-7B": _config("qwen2", 4096, 11008, 32, 32, 32),  # as read here: Qwen2's form
    "Qwen3-0.6B": _config("qwen3", 1024, 3072, 28, 16, 8, head_dim=128),
    "Qwen3-1.7B": _config("qwen3", 2048, 6144, 28, 16, 8, head_dim=128),
    "Qwen3-4B": _config("qwen3", 2560, 9728, 36, 32, 8, head_dim=128),
    "Qwen3-8B": _config("qwen3", 4096, 12288, 36, 32, 8, head_dim=128),
    "Qwen3-14B": _config("qwen3", 5120, 17408, 40, 40, 8, head_dim=128),
    "Qwen3-30B-A3B": _config("qwen3_moe", 2048, 6144, 48, 32, 4, head_dim=128, **_EXPERTS),
    # As read here: in the form of Llama. InternLM2.5 has the same sizes.
    "InternLM2-1.8B": _config("llama", 2048, 8192, 24, 16, 8),
    "InternLM2.5-7B": _config("llama", 4096, 14336, 32, 32, 8),
    "InternLM2-20B": _config("llama", 6144, 16384, 48, 48, 8),
    "Phi-3-mini": _config("phi3", 3072, 8192, 32, 32, 32),
}


_QWEN2, _QWEN2_5, _QWEN3, _INTERNLM2, _PHI3 = 151655, 151674, 151936, 92553, 32020


def _siglip(name: str) -> Base:
    return Base(name, "SigLIP-so400m", "Qwen2.5-0.5B", _QWEN2_5, None, "bilinear_mlp", select_layer=-2)


def _llava(name: str, encoder: str, llm: str, vocab_size: int = _QWEN2_5) -> Base:
    return Base(name, encoder, llm, vocab_size, projector_type="mlp", select_layer=-2)


def _official(name: str, encoder: str, llm: str, vocab_size: int, template: str = "internvl2_5") -> Base:
    return Base(name, encoder, llm, vocab_size, f"OpenGVLab/{name}", template=template)


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base("InternViT-300M-Qwen2.5-1.5B", "300M", "Qwen2.5-1.5B", _QWEN2_5),
        _siglip("SigLIP-Qwen2.5-0.5B"),
        _siglip("SigLIP-Qwen2.5-0.5B-tiled"),  # built with --max-tiles 6
        _llava("CLIP-Qwen-7B", "CLIP-L", "Qwen-7B", 151860),
        _llava("CLIP-Qwen2.5-7B", "CLIP-L", "Qwen2.5-7B"),
        _llava("SigLIP-Qwen2.5-7B", "SigLIP-so400m", "Qwen2.5-7B"),
        _llava("SigLIP-Qwen-7B", "SigLIP-so400m", "Qwen-7B", 151860),
        _llava("LLaVA-Qwen2.5-3B", "CLIP-L-336", "Qwen2.5-3B"),
        _llava("LLaVA-Qwen2.5-7B", "CLIP-L-336", "Qwen2.5-7B"),
        _official("Mini-InternVL-Chat-2B-V1-5", "300M", "InternLM2-1.8B", _INTERNLM2, "internlm2-chat"),
        _official("Mini-InternVL-Chat-4B-V1-5", "300M", "Phi-3-mini", _PHI3, "phi3-chat"),
        _official("InternVL-Chat-V1-5", "6B", "InternLM2-20B", _INTERNLM2, "internlm2-chat"),
        _official("InternVL2-1B", "300M", "Qwen2.5-0.5B", _QWEN2, "Hermes-2"),
        _official("InternVL2-2B", "300M", "InternLM2-1.8B", _INTERNLM2, "internlm2-chat"),
        _official("InternVL2-4B", "300M", "Phi-3-mini", _PHI3, "phi3-chat"),
        _official("InternVL2-8B", "300M", "InternLM2.5-7B", _INTERNLM2, "internlm2-chat"),
        _official("InternVL2-26B", "6B", "InternLM2-20B", _INTERNLM2, "internlm2-chat"),
        _official("InternVL2_5-1B", "300M", "Qwen2.5-0.5B", _QWEN2_5),
        _official("InternVL2_5-2B", "300M", "InternLM2-1.8B", _INTERNLM2),
        _official("InternVL2_5-4B", "300M", "Qwen2.5-3B", _QWEN2_5),
        _official("InternVL2_5-8B", "300M", "InternLM2.5-7B", _INTERNLM2),
        _official("InternVL2_5-26B", "6B", "InternLM2-20B", _INTERNLM2),
        _official("InternVL3-1B", "300M", "Qwen2.5-0.5B", _QWEN2_5),
        _official("InternVL3-2B", "300M", "Qwen2.5-1.5B", _QWEN2_5),
        _official("InternVL3-8B", "300M", "Qwen2.5-7B", _QWEN2_5),
        _official("InternVL3-14B", "300M", "Qwen2.5-14B", _QWEN2_5),
        _official("InternVL3-38B", "6B", "Qwen2.5-32B", _QWEN2_5),
        _official("InternVL3_5-1B", "300M", "Qwen3-0.6B", _QWEN3),
        _official("InternVL3_5-2B", "300M", "Qwen3-1.7B", _QWEN3),
        _official("InternVL3_5-4B", "300M", "Qwen3-4B", _QWEN3),
        _official("InternVL3_5-8B", "300M", "Qwen3-8B", _QWEN3),
        Base("InternVL3_5-8B-Flash-base", "300M", "Qwen3-8B", _QWEN3, flash=True),
        _official("InternVL3_5-14B", "300M", "Qwen3-14B", _QWEN3),
        _official("InternVL3_5-30B-A3B", "300M", "Qwen3-30B-A3B", _QWEN3),
    )
}
_SIGLIP = "SigLIP-Qwen2.5-0.5B"
# Directories that configs start from and other configs export: the base whose shapes they have.
EXPORTS = {
    "exports/pretrain_mlp": "InternViT-300M-Qwen2.5-1.5B",
    "exports/mine": "InternVL3_5-2B",
    "exports/siglip_pretrain": _SIGLIP,
    "exports/siglip_sft_lora": _SIGLIP,
    "exports/llava_pretrain": "LLaVA-Qwen2.5-3B",
    "exports/flash_consistency": "InternVL3_5-8B-Flash-base",
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


def released_rate(base: str, *, has_lora: bool) -> float | None:
    """The learning rate for fine-tuning a released model; None for any other base.

    For the whole LLM it is that of the authors' second fine-tuning; InternVL3.5, which has no scripts, takes that of
    InternVL3. LoRA learns best at several times as much.
    """
    row = known_base(base)
    if row is None or not row.hub:
        return None
    small, large = (1e-4, 5e-5) if has_lora else (4e-5, 2e-5)
    if not has_lora and row.name.startswith("InternVL3"):
        return 1e-5 if row.name.endswith("-1B") else 2e-5
    return large if row.name.endswith(_LARGE) else small


def other_rate(model: Mapping[str, Any], rate: float) -> float | None:
    """The rate for the base of a config's `model` where it isn't ``rate``; None where it is, or none is known."""
    has_lora = bool(model.get("llm_lora"))
    if "objectives" in model or not (has_lora or model.get("freeze_llm") is False):
        return None
    known = released_rate(model["base"], has_lora=has_lora)
    return None if known == rate else known


def known_base(path: str) -> Base | None:
    """The row of `BASES` that a config's `model.base` means by its name, wherever the directory will lie, or None."""
    name = EXPORTS.get(path, Path(path).name)
    return BASES.get(name) or BASES.get(name.removesuffix("-Instruct").removesuffix("-Pretrained"))  # of one release
