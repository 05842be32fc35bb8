"""What a model's size follows from: its linear layers and the widths between them.

Weights, LoRA adapters, 4-bit weights, activations and floating-point operations are all computed from these shapes.
`tests/planning/test_shapes.py` compares the parameters with those of the real classes, for every base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..families import encoder_family, llm_family, target_matcher
from ..hub.constants import PROJECTOR_TYPES, projector_input_width, token_grid


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block.

    Attributes:
        name: path inside the block, as in the model's parameter names.
        inputs, outputs: widths.
        bias: whether it has one.
        copies: how many of them a block has (experts).
        active: how many of the copies a token passes through.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    active: int = 1

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
    """A transformer: the blocks of an encoder or an LLM.

    Attributes:
        kind: `model_type`.
        prefix: what stands before the index of a block in the names of its layers.
        width, inner: D, and the width inside the feed-forward part (of all active experts together).
        layers: number of blocks.
        heads, kv_heads, head_dim: of the attention.
        linears: of one block.
        block_norms: parameters of a block that belong to no linear layer.
        outside: parameters outside the blocks (embeddings, norms, head).
        causal: whether a token sees earlier ones only.
        gated: whether the feed-forward part multiplies two branches (SwiGLU).
    """

    kind: str
    prefix: str
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    linears: tuple[Linear, ...]
    block_norms: int
    outside: int
    causal: bool
    gated: bool

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
        match = target_matcher(targets)
        return [linear for linear in self.linears if match(f"{self.prefix}.0.{linear.name}")]


@dataclass(frozen=True)
class Shape:
    """A model: encoder, projector, LLM.

    Attributes:
        encoder, llm: the two stacks.
        used_layers: blocks of the encoder that run.
        unused: parameters of the encoder that no feature depends on.
        vocab_size: token rows.
        tile_size: side of a tile in pixels.
        positions: of a tile in the encoder, class token included.
        tokens_per_tile: N, image tokens.
        projector_input: width of the vectors that the projector takes.
        projector_norm: whether it starts with a norm.
        image_mean_bytes: bytes of a tile as float32 pixels.
    """

    encoder: Stack
    llm: Stack
    used_layers: int
    unused: int
    vocab_size: int
    tile_size: int
    positions: int
    tokens_per_tile: int
    projector_input: int
    projector_norm: bool

    @property
    def projector(self) -> int:
        """Parameters of the projector."""
        wide, width = self.projector_input, self.llm.width
        return 2 * wide * self.projector_norm + (wide + 1) * width + (width + 1) * width

    def part(self, name: str) -> int:
        """Parameters of `visual_encoder`, `projector` or `llm`."""
        return {
            "visual_encoder": self.encoder.parameters,
            "projector": self.projector,
            "llm": self.llm.parameters,
        }[name]

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.encoder.parameters + self.projector + self.llm.parameters


def shape_of(
    vision: Mapping[str, Any],
    llm: Mapping[str, Any],
    *,
    tile_size: int,
    downsample_ratio: float,
    projector_type: str = PROJECTOR_TYPES[0],
    select_layer: int = -1,
) -> Shape:
    """The shape of a model from the fields of its two configs.

    Args:
        vision: of the encoder's config, `model_type` among them.
        llm: of the LLM's config, `model_type` and `vocab_size` among them.
        tile_size: side of a tile in pixels.
        downsample_ratio, projector_type, select_layer: as in an `InternVLChatConfig`.

    Raises:
        UnknownFamilyError: a `model_type` without a row in `families.py`.
        ValueError: patches that can't be merged.
    """
    encoder, used, unused = _encoder(vision, select_layer)
    has_class = encoder.kind != "siglip_vision_model"
    return Shape(
        encoder=encoder,
        llm=_llm(llm),
        used_layers=used,
        unused=unused,
        vocab_size=llm["vocab_size"],
        tile_size=tile_size,
        positions=(tile_size // vision["patch_size"]) ** 2 + has_class,
        tokens_per_tile=token_grid(tile_size, vision["patch_size"], downsample_ratio, projector_type) ** 2,
        projector_input=projector_input_width(vision["hidden_size"], downsample_ratio, projector_type),
        projector_norm=projector_type == PROJECTOR_TYPES[0],
    )


def _encoder(fields: Mapping[str, Any], select_layer: int) -> tuple[Stack, int, int]:
    """The encoder, its blocks in use, and its parameters that no feature depends on."""
    family = encoder_family(fields)
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    patches = (fields["image_size"] // fields["patch_size"]) ** 2
    patch = 3 * fields["patch_size"] ** 2 * width
    used = select_layer if select_layer >= 0 else layers + 1 + select_layer
    if family.is_intern_vit:
        rms, normalized = fields.get("norm_type") == "rms_norm", fields.get("qk_normalization", False)
        linears = (
            Linear("attn.qkv", width, 3 * width, fields.get("qkv_bias", True)),
            Linear("attn.proj", width, width, True),
            Linear("mlp.fc1", width, inner, True),
            Linear("mlp.fc2", inner, width, True),
        )
        norms = 2 * width * (1 if rms else 2) + 2 * width + 2 * width * normalized  # norms, layer scales, q and k
        outside = width + patch + width + (patches + 1) * width
        after = 0
        prefix = "encoder.layers"
    else:
        is_clip = family.model_type == "clip_vision_model"
        attention = tuple(Linear(f"self_attn.{name}_proj", width, width, True) for name in ("q", "k", "v", "out"))
        linears = (*attention, Linear("mlp.fc1", width, inner, True), Linear("mlp.fc2", inner, width, True))
        norms = 4 * width
        after = 2 * width
        outside = patch + (2 * width if is_clip else 0) + width
        outside += (patches + is_clip) * width + after
        prefix = "vision_model.encoder.layers"
    stack = Stack(
        kind=family.model_type,
        prefix=prefix,
        width=width,
        inner=inner,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        linears=linears,
        block_norms=norms,
        outside=outside,
        causal=False,
        gated=False,
    )
    return stack, used, 0 if family.is_intern_vit else (layers - used) * stack.block + after


def _llm(fields: Mapping[str, Any]) -> Stack:
    kind = llm_family(fields).model_type
    width, inner, layers = fields["hidden_size"], fields["intermediate_size"], fields["num_hidden_layers"]
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads") or heads
    head_dim = fields.get("head_dim") or width // heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    bias = kind == "qwen2" or bool(fields.get("attention_bias"))
    if kind == "phi3":
        attention = (Linear("self_attn.qkv_proj", width, queries + 2 * keys),)
    else:
        sizes = (("q", queries), ("k", keys), ("v", keys))
        attention = tuple(Linear(f"self_attn.{name}_proj", width, size, bias) for name, size in sizes)
    attention += (Linear("self_attn.o_proj", queries, width, bias and kind != "qwen2"),)
    feed_forward, inner = _feed_forward(kind, fields, width, inner)
    norms = 2 * width + (2 * head_dim if kind.startswith("qwen3") else 0)
    tables = 1 if fields.get("tie_word_embeddings") else 2
    return Stack(
        kind=kind,
        prefix="model.layers",
        width=width,
        inner=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        linears=(*attention, *feed_forward),
        block_norms=norms,
        outside=tables * fields["vocab_size"] * width + width,
        causal=True,
        gated=True,
    )


def _feed_forward(kind: str, fields: Mapping[str, Any], width: int, inner: int) -> tuple[tuple[Linear, ...], int]:
    """Linear layers of the feed-forward part, and its inner width (of all active experts together)."""
    if kind == "phi3":
        return (Linear("mlp.gate_up_proj", width, 2 * inner), Linear("mlp.down_proj", inner, width)), inner
    gated = (("gate_proj", True), ("up_proj", True), ("down_proj", False))
    if kind == "qwen3_moe":
        inner, experts, active = fields["moe_intermediate_size"], fields["num_experts"], fields["num_experts_per_tok"]
        linears = tuple(
            Linear(f"mlp.experts.0.{name}", *((width, inner) if into else (inner, width)), False, experts, active)
            for name, into in gated
        )
        return (Linear("mlp.gate", width, experts), *linears), inner * active
    return tuple(Linear(f"mlp.{name}", *((width, inner) if into else (inner, width))) for name, into in gated), inner
