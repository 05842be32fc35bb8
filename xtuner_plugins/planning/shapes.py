"""What a model's size follows from: its linear layers and the widths between them.

Weights, LoRA adapters, 4-bit weights, activations and floating-point operations are all computed from these shapes.
`tests/planning/test_shapes.py` compares them with the real classes, for every base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..families import Family, encoder_family, llm_family, target_matcher
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

    family: Family  # its row
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
    tile_size, encoder = config.get("force_image_size") or vision["image_size"], _encoder(vision)
    used = select_layer if select_layer >= 0 else encoder.layers + 1 + select_layer
    other_tokens = vision.get("num_register_tokens", 0) + (not _is_siglip(encoder.family))  # and the class
    return Shape(
        encoder=encoder,
        llm=_llm(llm),
        used_layers=used,
        unused=0 if encoder.family.is_intern_vit else (encoder.layers - used) * encoder.block + 2 * encoder.width,
        vocab_size=llm["vocab_size"],
        tile_size=tile_size,
        positions=(tile_size // vision["patch_size"]) ** 2 + other_tokens,
        tokens_per_tile=token_grid(tile_size, vision["patch_size"], ratio, projector_type) ** 2,
        projector_input=projector_input_width(encoder.width, ratio, projector_type),
        projector_norm=projector_type == PROJECTOR_TYPES[0],
        flash=bool(config.get("flash_mode")),
    )


def _sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    """Fields of `Stack` that a config names."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    kv_heads, head_dim = fields.get("num_key_value_heads") or heads, fields.get("head_dim") or width // heads
    sizes = dict(width=width, inner=fields["intermediate_size"], layers=fields["num_hidden_layers"])
    return sizes | dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim)


def _encoder(fields: Mapping[str, Any]) -> Stack:
    """The encoder of a ``vision_config``; `norms` and `outside` count vectors of its width."""
    family, sizes, patch = encoder_family(fields), _sizes(fields), fields["patch_size"]
    width, inner, prefix = sizes["width"], sizes["inner"], "vision_model.encoder.layers"
    rms, qk_norm = fields.get("norm_type") == "rms_norm", fields.get("qk_normalization", False)
    pixels, positions = 3 * patch**2, (fields["image_size"] // patch) ** 2  # of a patch embedding without bias
    linears = [Linear("mlp.fc1", width, inner, True), Linear("mlp.fc2", inner, width, True)]
    if family.is_intern_vit:
        prefix, outside = "encoder.layers", pixels + positions + 3  # bias; the class token and its position
        norms = 2 * (1 if rms else 2) + 2 * (1 + qk_norm)  # and layer scales
        linears.append(Linear("attn.qkv", width, 3 * width, fields.get("qkv_bias", True)))
        linears.append(Linear("attn.proj", width, width, True))
    elif family.model_type == "dinov3_vit":
        outside, norms = pixels + 4 + fields["num_register_tokens"], 6  # bias, class token, the norm behind the blocks
        into, bias = ("gate", "up") if fields["use_gated_mlp"] else ("up",), fields["mlp_bias"]
        linears = [Linear(f"mlp.{name}_proj", width, inner, bias) for name in into]
        linears.append(Linear("mlp.down_proj", inner, width, bias))
        names = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "o": "proj_bias"}
        linears += [Linear(f"attention.{name}_proj", width, width, fields[bias]) for name, bias in names.items()]
    else:  # the norm behind the blocks; SigLIP's bias, or CLIP's norm before them, class token and its position
        outside, norms = pixels + positions + (3 if _is_siglip(family) else 6), 4
        linears += [Linear(f"self_attn.{name}_proj", width, width, True) for name in ("q", "k", "v", "out")]
    sizes |= dict(block_norms=norms * width, outside=outside * width, rms_norm=rms, qk_norm=qk_norm)
    return Stack(family, prefix, linears=tuple(linears), **sizes)


def _llm(fields: Mapping[str, Any]) -> Stack:
    family, sizes = llm_family(fields), _sizes(fields)
    kind, width, inner, head_dim = family.model_type, sizes["width"], sizes["inner"], sizes["head_dim"]
    queries, keys, qk_norm = sizes["heads"] * head_dim, sizes["kv_heads"] * head_dim, "qwen3" in kind
    bias, path, copies = kind == "qwen2" or bool(fields.get("attention_bias")), "mlp", (1, 1)
    if kind == "qwen3_moe":
        inner, path = fields["moe_intermediate_size"], "mlp.experts.0"
        copies = fields["num_experts"], fields["num_experts_per_tok"]
    attention, into = {"q": queries, "k": keys, "v": keys}, {"gate": inner, "up": inner}
    if kind == "phi3":
        attention, into = {"qkv": queries + 2 * keys}, {"gate_up": 2 * inner}
    linears = [Linear(f"self_attn.{name}_proj", width, size, bias) for name, size in attention.items()]
    linears.append(Linear("self_attn.o_proj", queries, width, bias and kind != "qwen2"))
    linears += [Linear("mlp.gate", width, copies[0])] * (kind == "qwen3_moe")
    linears += [Linear(f"{path}.{name}_proj", width, size, False, *copies) for name, size in into.items()]
    linears.append(Linear(f"{path}.down_proj", inner, width, False, *copies))
    tables = 1 if fields.get("tie_word_embeddings") else 2
    sizes |= dict(inner=inner * copies[1], block_norms=2 * width + 2 * head_dim * qk_norm, rms_norm=True)
    outside = (tables * fields["vocab_size"] + 1) * width
    return Stack(family, "model.layers", linears=tuple(linears), outside=outside, qk_norm=qk_norm, **sizes)


def _is_siglip(family: Family) -> bool:
    return family.model_type == "siglip_vision_model"
