"""Flash models: which tiles are compressed, and what the LLM then reads, against the format's description by loops."""

import statistics

import pytest
import torch

from xtuner_plugins.hub.modeling_flash import choose_tiles

from .cases import VISION, make_batch, make_config, make_model

FLASH = {"flash_mode": True, "flash_relative_threshold": 0.4, "flash_absolute_threshold": 0.0}


def flash_model(width=32, **fields):
    model = make_model(make_config({**VISION, "hidden_size": width}, **{**FLASH, **fields}))
    with torch.no_grad():
        model.gating.gate[1].weight.mul_(20)  # so that tiles differ clearly
    return model


def attend(attention, query, patches):
    """One query [D] over patches [P, D], head by head."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query[None], patches, patches), weights, biases, strict=True))
    heads = zip(*(x.chunk(16, dim=1) for x in (q, k, v)), strict=True)
    return attention.out_proj(torch.cat([(q @ k.T / k.shape[1] ** 0.5).softmax(-1) @ v for q, k, v in heads], dim=1))[0]


def probability(model, patches):
    """That a tile is compressed, from its patches [P, D]."""
    pooling, gating = model.pooling_before_gating, model.gating
    pooled = pooling.norm1(attend(pooling.attn1, pooling.query_token[0], patches))
    for _ in range(3):
        pooled = pooling.norm2(attend(pooling.attn2, pooled, patches))
    for block in (gating.block1, gating.block2, gating.block3, gating.block4):
        pooled = pooled + block(pooled)
    return gating.gate(pooled).softmax(-1)[0].item()


def read_by_llm(model, pixels, ids):
    """Embeddings [S', H] of one request, tile by tile, and how many tiles are compressed."""
    patches = model.encode_tiles(pixels)
    probabilities = [probability(model, each) for each in patches]
    assert model.route(patches).softmax(-1)[:, 0].tolist() == pytest.approx(probabilities, abs=1e-5)
    limit = statistics.quantiles(probabilities, n=5, method="inclusive")[1] if len(probabilities) > 1 else 1.0
    chosen = [each > limit for each in probabilities]
    images = []
    for each, few in zip(patches, chosen, strict=True):
        grid = each.view(8, 8, -1)
        cells = [grid[y : y + 4, x : x + 4].reshape(-1) for y in (0, 4) for x in (0, 4)]
        images.append(model.mlp2(torch.stack(cells)) if few else model.project(each[None])[0])
    words, first = model.get_input_embeddings()(ids), int((ids == model.img_context_token_id).int().argmax())
    return torch.cat([words[:first], *images, words[first + 16 * len(images) :]]), sum(chosen)


@torch.no_grad()
def test_each_row_is_a_request_that_is_read_as_described():
    model = flash_model()
    names = "mlp2.1", "mlp2.4", "mlp2.7", "gating.block4.0", "gating.block4.3"  # sizes of the published code
    assert [model.get_submodule(name).out_features for name in names] == [64, 64, 32, 128, 32]
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    tiles = (5, 1, 0, 2)
    pixels, ids = make_batch(model, tiles, length=90)
    embeds, mask = model.compressed_inputs(pixels, ids)
    whole = model.generate(pixels, ids, torch.ones_like(ids), max_new_tokens=4)
    for row, own in enumerate(pixels.split(tiles)):
        expected, number = read_by_llm(model, own, ids[row])
        assert number == (3, 0, 0, 1)[row]  # above the 0.4 quantile; one tile alone never
        assert mask[row].tolist() == [0] * (len(mask[row]) - len(expected)) + [1] * len(expected)
        assert (embeds[row][mask[row] == 1] - expected).abs().max() < 1e-5
        alone = model.generate(own if len(own) else None, ids[row : row + 1], max_new_tokens=4)
        assert whole[row].equal(alone[0])


def test_which_tiles_are_chosen():
    for probabilities, relative, absolute, expected in (
        ([0.9, 0.2, 0.8, 0.7], 0.3, 0.75, [1, 0, 1, 0]),  # the absolute threshold
        ([0.875, 0.2, 0.8, 0.7], 0.3, 0.875, [1, 0, 0, 0]),  # which may be reached
        ([0.9, 0.2, 0.8, 0.7], 0.0, 0.0, [1, 0, 1, 1]),  # never all: one is the lowest
        ([0.9], 0.0, 0.0, [0]),  # alone
        ([0.6] * 5, 0.0, 0.5, [0] * 5),  # alike
        ([], 0.3, 0.5, []),
    ):
        chosen = choose_tiles(torch.tensor(probabilities), relative, absolute)
        assert chosen.tolist() == [bool(each) for each in expected], (probabilities, relative, absolute)


def test_forward_and_given_features_know_no_compression():
    model = flash_model(flash_absolute_threshold=1, flash_relative_threshold=1.0)
    plain = make_model(make_config({**VISION, "hidden_size": 32}))
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    pixels, ids = make_batch(model)
    make_batch(plain)
    with torch.no_grad():
        assert model(pixels, ids).logits.equal(plain(pixels, ids).logits)
    features = model.extract_feature(pixels)
    options = {"input_ids": ids, "max_new_tokens": 3}
    assert model.generate(visual_features=features, **options).equal(plain.generate(pixels, **options))
    with pytest.raises(ValueError, match=r"\[32, 16\] image tokens in the rows of input_ids for 2 tiles"):
        model.generate(pixels[:2], ids)


def test_what_cannot_be_a_flash_model_is_refused():
    for fields, words in (
        ({"flash_relative_threshold": None}, "flash_relative_threshold = None"),
        ({"flash_absolute_threshold": 1.5}, "flash_absolute_threshold = 1.5"),
        ({"projector_type": "mlp", "downsample_ratio": 1.0}, "projector_type mlp"),
        ({"select_layer": -2}, "select_layer -2"),
        ({"force_image_size": 84}, "3 x 3 tokens per tile"),
        ({"width": 24}, "an encoder of width 24"),
    ):
        with pytest.raises(ValueError, match=words):
            flash_model(**fields)
