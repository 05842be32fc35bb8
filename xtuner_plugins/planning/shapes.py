"""What a model's size follows from: its linear layers and the widths between them.

Weights, LoRA adapters, 4-bit weights, activations and floating-point operations are all computed from these shapes.
`tests/planning/test_shapes.py` compares them with the real classes, for every base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..families import encoder_family, llm_family, target_matcher
from ..hub.constants import PROJECTOR_TYPES, projector_input_width, token_grid


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block."""

    name: str  # path inside the block, as in the model's parameter names
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1  # how many of them a block has (experts)
    active: int = 1  # how many of the copies a token passes through

    @property
    def weights(self) -> int:
        """Weights of all copies, biases not included."""
        return self.inputs * self.outputs * self.copies

    @property
    def parameters(self) -> int:
        """Weights and biases of all copies."""
        return self.weights + self.bias * self.outputs * self.copies


@dataclass(frozen=True)
class Stack:
    """A transformer: the blocks of an encoder or an LLM."""

    kind: str  # `model_type`
    prefix: str  # what stands before the index of a block in the names of its layers
    width: int  # D
    inner: int  # width inside the feed-forward part (of all active experts together)
    layers: int  # number of blocks
    heads: int
    kv_heads: int
    head_dim: int
    linears: tuple[Linear, ...]  # of one block
    block_norms: int  # parameters of a block that belong to no linear layer
    outside: int  # parameters outside the blocks (embeddings, norms, head)
    rms_norm: bool  # the norms are RMS norms, computed in float32
    qk_norm: bool  # queries and keys have norms

    @property
    def block(self) -> int:
        """Parameters of a block."""
        return sum(linear.parameters for linear in self.linears) + self.block_norms

    @property
    def parameters(self) -> int:
        """Of all blocks and what is around them."""
        return self.layers * self.block + self.outside

    def matching(self, targets: str | Sequence[str]) -> list[Linear]:
        """Linear layers of a block that PEFT's rules of `target_modules` match."""
        match = target_matcher(".*" if targets == "all-linear" else targets)
        return [linear for linear in self.linears if match(f"{self.prefix}.0.{linear.name}")]


@dataclass(frozen=True)
class Shape:
    """A model: encoder, projector, LLM."""

    encoder: Stack
    llm: Stack
    used_layers: int  # blocks of the encoder that run
    unused: int  # parameters of the encoder that no feature depends on
    vocab_size: int  # token rows
    tile_size: int  # side of a tile in pixels
    positions: int  # of a tile in the encoder, class token included
    tokens_per_tile: int  # N, image tokens
    projector_input: int  # width of the vectors that the projector takes
    projector_norm: bool  # whether it starts with a norm
    flash: bool = False  # whether there are a second projector and a router

    @property
    def table(self) -> int:
        """Weights of the head, and of the embedding."""
        return self.vocab_size * self.llm.width

    def part(self, name: str) -> int:
        """Parameters of `visual_encoder`, `projector`, `llm`; of a Flash model of `mlp2` and `router`."""
        wide, width, seen = self.projector_input, self.llm.width, self.encoder.width
        merged = 4 * wide  # the second projector takes four vectors for one token
        return {
            "visual_encoder": self.encoder.parameters,
            "projector": 2 * wide * self.projector_norm + (wide + 1) * width + (width + 1) * width,
            "llm": self.llm.parameters,
            "mlp2": (2 * merged + (merged + 1) * 2 * width + (2 * width + 1) * 3 * width) * self.flash,
            # Four attentions, four blocks, the gate, and their norms
            "router": (4 * (4 * seen + 6) * seen + 4 * (8 * seen + 7) * seen + 5 * seen + 2) * self.flash,
        }[name]

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(map(self.part, ("visual_encoder", "projector", "llm", "mlp2", "router")))


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of the model of a `config.json`; the first of `PROJECTOR_TYPES` and the last layer are defaults.

    Raises:
        UnknownFamilyError: a `model_type` without a row in `families.py`.
        ValueError: patches that can't be merged.
    """
    vision, llm, ratio = config["vision_config"], config["llm_config"], config["downsample_ratio"]
    projector_type, select_layer = config.get("projector_type") or PROJECTOR_TYPES[0], config.get("select_layer", -1)
    tile_size, family = config.get("force_image_size") or vision["image_size"], encoder_family(vision)
    encoder = _encoder(vision)
    used = select_layer if select_layer >= 0 else encoder.layers + 1 + select_layer
    other_tokens = vision.get("num_register_tokens", 0) + (family.model_type != "siglip_vision_model")  # and the class
    return Shape(
        encoder=encoder,
        llm=_llm(llm),
        used_layers=used,
        unused=0 if family.is_intern_vit else (encoder.layers - used) * encoder.block + 2 * encoder.width,
        vocab_size=llm["vocab_size"],
        tile_size=tile_size,
        positions=(tile_size // vision["patch_size"]) ** 2 + other_tokens,
        tokens_per_tile=token_grid(tile_size, vision["patch_size"], ratio, projector_type) ** 2,
        projector_input=projector_input_width(encoder.width, ratio, projector_type),
        projector_norm=projector_type == PROJECTOR_TYPES[0],
        flash=bool(config.get("flash_mode")),
    )


_SIZES = ("model_type", "hidden_size", "intermediate_size")


def _stack(fields: Mapping[str, Any], prefix: str, linears: Mapping[str, tuple], **others: Any) -> Stack:
    kind, width, inner = (fields[key] for key in _SIZES)
    heads = fields["num_attention_heads"]
    sizes = dict(kind=kind, prefix=prefix, width=width, inner=inner, heads=heads)
    sizes |= dict(kv_heads=fields.get("num_key_value_heads") or heads, layers=fields["num_hidden_layers"])
    layers = tuple(Linear(name, *each) for name, each in linears.items())
    return Stack(head_dim=fields.get("head_dim") or width // heads, linears=layers, **{**sizes, **others})


def _encoder(fields: Mapping[str, Any]) -> Stack:
    kind, width, inner, patch = (fields[key] for key in (*_SIZES, "patch_size"))
    rms, normalized = fields.get("norm_type") == "rms_norm", fields.get("qk_normalization", False)
    pixels, positions = 3 * patch**2, (fields["image_size"] // patch) ** 2  # of a patch embedding without bias
    prefix, mlp = "vision_model.encoder.layers", {"mlp.fc1": (width, inner, True), "mlp.fc2": (inner, width, True)}
    # In widths: what stands outside the blocks, and a block's norms and layer scales.
    if encoder_family(fields).is_intern_vit:
        prefix, outside = "encoder.layers", pixels + positions + 3  # bias; the class token and its position
        norms = 2 * (1 if rms else 2) + 2 * (1 + normalized)
        attention = {"attn.qkv": (width, 3 * width, fields.get("qkv_bias", True)), "attn.proj": (width, width, True)}
    elif kind == "dinov3_vit":
        outside, norms = pixels + 4 + fields["num_register_tokens"], 6  # bias, class token, the norm behind the blocks
        names = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "o": "proj_bias"}
        attention = {f"attention.{name}_proj": (width, width, fields[bias]) for name, bias in names.items()}
        into = ("gate", "up") if fields["use_gated_mlp"] else ("up",)
        mlp = {f"mlp.{name}_proj": (width, inner, fields["mlp_bias"]) for name in into}
        mlp["mlp.down_proj"] = (inner, width, fields["mlp_bias"])
    else:  # the norm behind the blocks; SigLIP's bias, or CLIP's norm before them, class token and its position
        outside, norms = pixels + positions + (6 if "clip" in kind else 3), 4
        attention = {f"self_attn.{name}_proj": (width, width, True) for name in ("q", "k", "v", "out")}
    sizes = dict(block_norms=norms * width, outside=outside * width, rms_norm=rms, qk_norm=normalized)
    return _stack(fields, prefix, {**attention, **mlp}, **sizes)


def _llm(fields: Mapping[str, Any]) -> Stack:
    _, width, inner = (fields[key] for key in _SIZES)
    kind, heads = llm_family(fields).model_type, fields["num_attention_heads"]
    head_dim, qk_norm = fields.get("head_dim") or width // heads, "qwen3" in kind
    queries, keys = heads * head_dim, (fields.get("num_key_value_heads") or heads) * head_dim
    bias = kind == "qwen2" or bool(fields.get("attention_bias"))
    path, copies, active, attention = "mlp", 1, 1, {"q": queries, "k": keys, "v": keys}
    into = {"gate": inner, "up": inner}
    if kind == "phi3":
        attention, into = {"qkv": queries + 2 * keys}, {"gate_up": 2 * inner}
    linears = {f"self_attn.{name}_proj": (width, size, bias) for name, size in attention.items()}
    linears["self_attn.o_proj"] = (queries, width, bias and kind != "qwen2")
    if kind == "qwen3_moe":
        inner, copies, active = fields["moe_intermediate_size"], fields["num_experts"], fields["num_experts_per_tok"]
        linears["mlp.gate"], path, into = (width, copies), "mlp.experts.0", {"gate": inner, "up": inner}
    linears |= {f"{path}.{name}_proj": (width, size, False, copies, active) for name, size in into.items()}
    linears[f"{path}.down_proj"] = (inner, width, False, copies, active)
    tables = 1 if fields.get("tie_word_embeddings") else 2
    sizes = dict(block_norms=2 * width + 2 * head_dim * qk_norm, outside=(tables * fields["vocab_size"] + 1) * width)
    return _stack(fields, "model.layers", linears, inner=inner * active, rms_norm=True, qk_norm=qk_norm, **sizes)
