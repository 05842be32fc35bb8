"""What training asks of the encoder; `test_modeling_internvl_chat` compares it with transformers' own."""

import pytest
import torch
from torch.nn import functional

from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.modeling_intern_vit import InternVisionModel, drop_path, resized_positions

from .cases import VISION, make_config, make_model, make_pixels


@torch.no_grad()
def test_patch_features_are_the_chosen_hidden_state_without_class_token():
    model, tiles = make_model(make_config(select_layer=-2)), make_pixels()
    vision = model.vision_model
    states = vision(tiles, output_hidden_states=True).hidden_states
    assert len(states) == 4
    for layer in (-1, -2, -4, 0, 2, 3):
        assert torch.equal(vision.patch_features(tiles, layer), states[layer][:, 1:])
    for layer in (-5, 4):
        with pytest.raises(ValueError, match=f"select_layer = {layer}, but the encoder has 3"):
            vision.patch_features(tiles, layer)
    last, pooled = vision(pixel_embeds=states[0], return_dict=False)
    assert last.equal(states[-1]) and pooled.equal(last[:, 0])
    vision.encoder.layers[-1].forward = None  # calling it would fail: the blocks behind are skipped
    assert model.encode_tiles(tiles).equal(states[-2][:, 1:])


def test_drop_path_grows_over_the_blocks_and_rests_in_evaluation():
    for rates in ([0.0], [0.0, 0.2], [0.0, 0.1, 0.2]):
        fields = {**VISION, "drop_path_rate": 0.2, "num_hidden_layers": len(rates)}
        layers = InternVisionModel(InternVisionConfig(**fields)).encoder.layers
        assert [layer.drop_path_rate for layer in layers] == pytest.approx(rates)
    x = torch.ones(4000, 2, 3)
    assert drop_path(x, 0.2, training=False) is x
    torch.manual_seed(0)
    dropped = drop_path(x, 0.2, training=True)
    assert dropped.shape == x.shape and set(dropped.unique().tolist()) == {0.0, 1.25}
    # A whole tile goes or stays, and the mean is kept: 4000 draws, standard error 0.008.
    assert (dropped.amin((1, 2)) == dropped.amax((1, 2))).all() and abs(dropped.mean() - 1) < 0.04


@torch.no_grad()
def test_another_tile_side_interpolates_positions():
    """As pictures of 8 x 8 pixels, a channel each; the class token's stays."""
    vision = make_model().vision_model
    stored, found = vision.embeddings.position_embedding[0], vision.embeddings.position_embedding
    found = resized_positions(found, 12, 16)[0]
    pictures = [stored[1:, channel].reshape(1, 1, 8, 8) for channel in range(48)]
    resized = [functional.interpolate(each, size=(12, 16), mode="bicubic").flatten() for each in pictures]
    torch.testing.assert_close(found[1:], torch.stack(resized, dim=1))
    assert found[0].equal(stored[0]) and vision(make_pixels(side=168)).last_hidden_state.shape == (2, 145, 48)


def test_what_does_not_fit():
    """And nothing that newer releases would lose or overwrite.

    Buffers made in `__init__` come back as garbage in 5.x; an own `_init_weights` overwrote weights in 5.0.
    """
    for change, message in (
        ({"norm_type": "batch_norm"}, "norm_type = 'batch_norm'.*layer_norm, rms_norm"),
        ({"num_attention_heads": 5}, "hidden_size = 48 is no multiple of num_attention_heads = 5"),
    ):
        with pytest.raises(ValueError, match=message):
            InternVisionModel(InternVisionConfig(**{**VISION, **change}))
    model = make_model()
    with pytest.raises(ValueError, match=r"not \(3, 112, 112\)"):
        model.vision_model(make_pixels()[0])
    assert not list(model.vision_model.buffers()) and not list(model.mlp1.buffers())
    assert not any("_init_weights" in vars(cls) for cls in (type(model), type(model.vision_model)))
    # optimum-intel switches it off where it finds it
    assert model.vision_model.encoder.layers[0].attn.use_flash_attn is False
