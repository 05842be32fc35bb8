"""The InternViT vision encoder, 300M and 6B alike.

A plain vision transformer: patch embedding, class token, learned positions, pre-norm blocks with layer scale,
no final norm. Shapes in the docstrings: T tiles, P patches per tile, D width of the encoder, C channels, S
side in pixels. Parameter names and layouts are those of the published weights.
"""

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .configuration_intern_vit import InternVisionConfig


class InternRMSNorm(nn.Module):
    """Root mean square norm over the last axis, with statistics in float32 as for the published weights."""

    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x):
        """Normalizes `x` [..., D]; same shape and dtype out."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": InternRMSNorm}


def make_norm(config):
    """The norm that `config.norm_type` names; `ValueError` when there is no such norm."""
    if config.norm_type not in NORMS:
        raise ValueError(f"vision_config.norm_type = {config.norm_type!r}; legal are {', '.join(sorted(NORMS))}")
    return NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)


def drop_path(x, rate, training):
    """Stochastic depth: drops the branch `x` [T, ...] for a share `rate` of the tiles, scales up the rest."""
    if rate == 0.0 or not training:
        return x
    keep = torch.rand((x.shape[0],) + (1,) * (x.dim() - 1), device=x.device) >= rate
    return x * (keep.to(x.dtype) / (1.0 - rate))


def resized_positions(positions, rows, columns):
    """Position embeddings [1, 1 + P, D] of a square for a patch grid, interpolated unless it is the same."""
    stored = int((positions.shape[1] - 1) ** 0.5)
    if (rows, columns) == (stored, stored):
        return positions
    grid = positions[:, 1:].float().reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


class InternVisionEmbeddings(nn.Module):
    """Patches, class token and positions, which are interpolated for another side than `image_size` (pixels)."""

    def __init__(self, config):
        super().__init__()
        side, width = config.patch_size, config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, side, side)
        self.position_embedding = nn.Parameter(torch.randn(1, (config.image_size // side) ** 2 + 1, width))

    def forward(self, pixel_values):
        """Pixels [T, C, S, S], normalized -> embeddings [T, 1 + P, D], class token first."""
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], -1, -1)
        positions = resized_positions(self.position_embedding, rows, columns)
        return torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)


class InternAttention(nn.Module):
    """Full self-attention within a tile; the fused projection holds the rows of q, then of k, then of v."""

    use_flash_attn = False  # optimum-intel reads it: the package flash-attn is never called from here

    def __init__(self, config):
        super().__init__()
        self.config = config  # shared with the model, so that a later choice of attention reaches this layer
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        width = config.hidden_size
        if self.head_dim * self.num_heads != width:
            raise ValueError(
                f"vision_config.hidden_size = {width} is no multiple of num_attention_heads = {self.num_heads}"
            )
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.attention_dropout, self.proj_dropout = config.attention_dropout, config.dropout
        self.qk_normalization = config.qk_normalization
        if self.qk_normalization:
            self.q_norm = InternRMSNorm(width, eps=config.layer_norm_eps)
            self.k_norm = InternRMSNorm(width, eps=config.layer_norm_eps)

    def forward(self, x):
        """[T, 1 + P, D] -> [T, 1 + P, D]."""
        num_tiles, length, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=-1)
        if self.qk_normalization:
            # Over the whole width, all heads together, so before the heads are split.
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.reshape(num_tiles, length, self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        dropout = self.attention_dropout if self.training else 0.0
        if getattr(self.config, "_attn_implementation", None) == "eager":
            weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)
            out = F.dropout(weights, dropout, self.training) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out = self.proj(out.transpose(1, 2).reshape(num_tiles, length, width))
        return F.dropout(out, self.proj_dropout, self.training)


class InternMLP(nn.Module):
    """Feed-forward part of a block."""

    def __init__(self, config):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        """[T, 1 + P, D] -> [T, 1 + P, D]."""
        return self.fc2(self.act(self.fc1(x)))


class InternVisionEncoderLayer(nn.Module):
    """Pre-norm block: attention, then feed-forward, each scaled by channel (`ls1`, `ls2`), then added."""

    def __init__(self, config):
        super().__init__()
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = make_norm(config)
        self.norm2 = make_norm(config)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.dropout = config.dropout
        self.drop_path_rate = 0.0

    def forward(self, x):
        """[T, 1 + P, D] -> [T, 1 + P, D]."""
        x = x + drop_path(self.attn(self.norm1(x).to(x.dtype)) * self.ls1, self.drop_path_rate, self.training)
        branch = F.dropout(self.mlp(self.norm2(x).to(x.dtype)), self.dropout, self.training)
        return x + drop_path(branch * self.ls2, self.drop_path_rate, self.training)


def run_block(block, x, recompute, call=None):
    """Runs a block on `x` [T, P, D], by `call(block, x)` if there is one.

    Where `recompute` is set and a gradient reaches it, it keeps its input alone, and runs again in the backward pass.
    """
    call = call or nn.Module.__call__
    if not recompute or not (x.requires_grad or any(p.requires_grad for p in block.parameters())):
        return call(block, x)
    # The reentrant kind loses all gradients if the input needs none, as that of the first block when the embeddings are
    # frozen.
    return torch.utils.checkpoint.checkpoint(call, block, x, use_reentrant=False)


class InternVisionEncoder(nn.Module):
    """The stack of blocks; `gradient_checkpointing_enable()` of any model around it makes it recompute them."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(InternVisionEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.set_drop_path(config.drop_path_rate)
        self.gradient_checkpointing = False

    def set_drop_path(self, rate):
        """Sets stochastic depth in training: `rate` is that of the last block, and it grows linearly from 0."""
        for index, layer in enumerate(self.layers):
            layer.drop_path_rate = rate * index / max(len(self.layers) - 1, 1)

    def forward(self, inputs_embeds, output_hidden_states=False, num_layers=None):
        """Runs all blocks, or the first `num_layers`, on [T, 1 + P, D].

        Returns:
            The output [T, 1 + P, D], and with `output_hidden_states` what went into each block, and the output.
        """
        x, hidden_states = inputs_embeds, [inputs_embeds]
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers[:num_layers]:
            x = run_block(layer, x, recompute)
            if output_hidden_states:
                hidden_states.append(x)
        return BaseModelOutput(x, tuple(hidden_states) if output_hidden_states else None)


def num_used_layers(select_layer, num_layers):
    """How many of `num_layers` blocks run for `select_layer` (0: embeddings, -1: output of the last block).

    Raises:
        ValueError: There is no such layer.
    """
    used = select_layer if select_layer >= 0 else num_layers + 1 + select_layer
    if not 0 <= used <= num_layers:
        raise ValueError(f"select_layer = {select_layer}, but the encoder has {num_layers} layers")
    return used


class InternVisionModel(PreTrainedModel):
    """InternViT, of an `InternVisionConfig`: tiles in, one vector per patch out.

    Attention runs through PyTorch's `scaled_dot_product_attention`, or written out with the implementation `eager`.
    """

    config_class = InternVisionConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEmbeddings", "InternVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # what releases before 4.53 ask for

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(self.config)
        self.encoder = InternVisionEncoder(self.config)
        self.post_init()

    def get_input_embeddings(self):
        """The module that turns pixels into embeddings."""
        return self.embeddings

    def patch_features(self, pixel_values, select_layer=-1):
        """Hidden state of the patches after a chosen block, without the class token; later blocks don't run.

        Args:
            pixel_values: [T, C, S, S], normalized.
            select_layer: Index into the hidden states (0: embeddings, -1: output of the last block).

        Returns:
            [T, P, D].

        Raises:
            ValueError: There is no such layer.
        """
        num_layers = num_used_layers(select_layer, len(self.encoder.layers))
        return self.encoder(self.embeddings(pixel_values), num_layers=num_layers).last_hidden_state[:, 1:]

    def forward(self, pixel_values=None, output_hidden_states=None, return_dict=None, pixel_embeds=None):
        """Encodes tiles.

        Args:
            pixel_values: [T, C, S, S], normalized.
            output_hidden_states: Also return embeddings and every block's output.
            return_dict: `False` for a tuple.
            pixel_embeds: [T, 1 + P, D] in place of `pixel_values`.

        Returns:
            `last_hidden_state` [T, 1 + P, D] (no final norm), `pooler_output` [T, D] (class token), `hidden_states`.

        Raises:
            ValueError: Neither pixels nor embeddings, or pixels of another shape.
        """
        if pixel_embeds is None:
            if pixel_values is None or pixel_values.dim() != 4:
                found = None if pixel_values is None else tuple(pixel_values.shape)
                raise ValueError(f"pixel_values must be [tiles, channels, height, width], not {found}")
            pixel_embeds = self.embeddings(pixel_values)
        every = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        encoded = self.encoder(pixel_embeds, output_hidden_states=bool(every))
        last = encoded.last_hidden_state
        found = BaseModelOutputWithPooling(last, pooler_output=last[:, 0], hidden_states=encoded.hidden_states)
        return found.to_tuple() if return_dict is False else found
