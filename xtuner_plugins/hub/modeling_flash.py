"""The parts of a Flash model: a second projector, `mlp2`, that makes a quarter of the tokens, and a router.

InternVL3.5-Flash (arXiv 2508.18265, "ViCO") decides for each tile whether a quarter of its tokens serves::

    patches [P, D] --+-- pixel shuffle 1/2 -- mlp1 --> N tokens       (256 of a tile of 448 pixels)
                     +-- pixel shuffle 1/4 -- mlp2 --> N / 4 tokens   (64)
                     +-- pooling_before_gating -- gating --> compress or not

Shapes in the docstrings are those of `modeling_internvl_chat.py`.
"""

import torch
from torch import nn

from .prompts import left_padded

FLASH_PARTS = ("mlp2", "pooling_before_gating", "gating")  # attributes of the chat model, names in its files
FEWER = 4  # times as few tokens in a compressed tile
NUM_HEADS, ROUNDS, EXPANSION, DROPOUT = 16, 4, 4, 0.1  # fixed: config.json has no fields for them


class FlashMethods:
    """The part of `InternVLChatModel` that a Flash model has beside the others."""

    def add_flash_parts(self, config):
        """Makes `FLASH_PARTS`; `ValueError` where a config can't be a Flash model's."""
        for name in ("flash_relative_threshold", "flash_absolute_threshold"):
            value = getattr(config, name, None)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise ValueError(f"config.json: {name} = {value!r}; a Flash model needs a number from 0 to 1")
        width, side = config.vision_config.hidden_size, int(self.num_image_token**0.5)
        wrong = {
            f"projector_type {self.projector_type}": self.projector_type != "pixel_shuffle_mlp",
            f"select_layer {self.select_layer}": self.select_layer not in (-1, config.vision_config.num_hidden_layers),
            f"{side} x {side} tokens per tile": side % 2,
            f"an encoder of width {width}": width % NUM_HEADS,
        }
        if any(wrong.values()):
            raise ValueError(f"config.json: no Flash model has {', '.join(name for name in wrong if wrong[name])}")
        self.mlp2 = make_mlp2(width * int(1 / config.downsample_ratio) ** 4, config.llm_config.hidden_size)
        self.pooling_before_gating = TilePooling(width)
        self.gating = TileGate(width)

    def project_compressed(self, patch_features):
        """As `project`, by `mlp2`: [T, P, D] -> [T, N / 4, H]."""
        side = int(patch_features.shape[1] ** 0.5)
        features = patch_features.unflatten(1, (side, side))
        return self.mlp2(self.pixel_shuffle(features, self.downsample_ratio**2).flatten(1, 2))

    def route(self, patch_features):
        """The router's logits, compress and keep: [T, P, D] -> [T, 2]."""
        return self.gating(self.pooling_before_gating(patch_features))

    def compressed_inputs(self, pixel_values, input_ids, attention_mask=None):
        """What the LLM reads: each row is a request, in which the router chooses tiles to compress.

        Args:
            pixel_values: Tiles [T, 3, S, S], normalized.
            input_ids: int64 [B, S], with N `<IMG_CONTEXT>` tokens for each tile.
            attention_mask: [B, S]; `None` is 1 everywhere.

        Returns:
            Embeddings [B, S', H], of a compressed tile at its first N / 4 positions alone, and their mask [B, S'];
            padded on the left where rows differ in length.

        Raises:
            ValueError: Image tokens and tiles differ in number.
        """
        patches, size = self.encode_tiles(pixel_values), self.num_image_token
        is_image = input_ids == self.img_context_token_id
        tokens = is_image.sum(1)
        if int(tokens.sum()) != len(patches) * size or (tokens % size).any():
            raise ValueError(
                f"{tokens.tolist()} image tokens in the rows of input_ids for {len(patches)} tiles; each tile takes "
                f"{size} <IMG_CONTEXT> tokens, some of which a Flash model leaves out itself"
            )
        limits = self.config.flash_relative_threshold, self.config.flash_absolute_threshold
        requests = self.route(patches).softmax(-1)[:, 0].split((tokens // size).tolist())
        compressed = torch.cat([choose_tiles(request, *limits) for request in requests])
        few, many = self.project_compressed(patches[compressed]), self.project(patches[~compressed])

        embeds = self.get_input_embeddings()(input_ids)
        kept, compressed = torch.ones_like(is_image), compressed.to(is_image.device)
        kept[is_image] = kept_tokens(compressed, size)
        of_few = compressed.repeat_interleave(torch.where(compressed, size // FEWER, size))
        features = embeds.new_empty(len(of_few), embeds.shape[-1])
        features[of_few], features[~of_few] = few.flatten(0, 1).to(features), many.flatten(0, 1).to(features)
        embeds = embeds.masked_scatter((is_image & kept)[..., None], features)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return tuple(left_padded([row[own] for row, own in zip(each, kept, strict=True)]) for each in (embeds, mask))


def make_mlp2(wide, llm_width):
    """The projector of compressed tiles: [..., 16 D] -> [..., H]."""
    return nn.Sequential(
        nn.LayerNorm(wide),
        nn.Linear(wide, 2 * llm_width),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(2 * llm_width, 2 * llm_width),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(2 * llm_width, llm_width),
    )


class TilePooling(nn.Module):
    """One vector per tile: a learned query attends to the tile's patches four times.

    Rounds 3 and 4 use `attn2` and `norm2` again, as in the published code; the file has weights for all four.
    """

    def __init__(self, width):
        super().__init__()
        self.query_token = nn.Parameter(torch.randn(1, width))
        for number in range(1, ROUNDS + 1):
            setattr(self, f"attn{number}", nn.MultiheadAttention(width, NUM_HEADS, batch_first=True))
            setattr(self, f"norm{number}", nn.LayerNorm(width))

    def forward(self, patches):
        """[T, P, D] -> [T, D]."""
        pooled = self.query_token.expand(patches.shape[0], 1, -1)
        for attention, norm in ((self.attn1, self.norm1), *[(self.attn2, self.norm2)] * (ROUNDS - 1)):
            pooled = norm(attention(pooled, patches, patches, need_weights=False)[0])
        return pooled.squeeze(1)


class TileGate(nn.Module):
    """Two logits per tile, compress and keep, from its pooled vector."""

    def __init__(self, width):
        super().__init__()
        for number in range(1, ROUNDS + 1):
            layers = [nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Dropout(DROPOUT)]
            layers += [nn.Linear(EXPANSION * width, width), nn.Dropout(DROPOUT), nn.LayerNorm(width)]
            setattr(self, f"block{number}", nn.Sequential(*layers))
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, pooled):
        """[T, D] -> [T, 2]."""
        for number in range(1, ROUNDS + 1):
            pooled = pooled + getattr(self, f"block{number}")(pooled)
        return self.gate(pooled)


def choose_tiles(probabilities, relative_threshold, absolute_threshold):
    """Which tiles of one request are compressed, bool [T], from the probabilities [T] of `compress`.

    Those of at least the absolute threshold that are above the quantile of all tiles of the request: about a share of
    1 - relative_threshold at most, and never a tile that is alone, which is its own quantile.
    """
    if not len(probabilities):
        return torch.zeros(0, dtype=torch.bool, device=probabilities.device)
    above = probabilities > torch.quantile(probabilities.float(), relative_threshold)
    return above & (probabilities >= absolute_threshold)


def kept_tokens(compressed, tokens_per_tile):
    """Which image tokens remain, bool [T * N]: all of a tile's, or the first quarter of a compressed one's."""
    first = torch.arange(tokens_per_tile, device=compressed.device) < tokens_per_tile // FEWER
    return (first | ~compressed[:, None]).flatten()
