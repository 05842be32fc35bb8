"""What training asks of the encoder; `test_modeling_internvl_chat` compares it with transformers' own."""

import pytest
import torch

from xtuner_plugins.hub import InternVisionConfig, InternVisionModel
from xtuner_plugins.hub.modeling_intern_vit import drop_path, resize_positions

from .cases import TILE, VISION, make_model


def tiles(count=2, side=TILE, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_patch_features_are_the_chosen_hidden_state_without_class_token():
    vision = make_model().vision_model
    with torch.no_grad():
        states = vision(tiles(), output_hidden_states=True).hidden_states
        assert len(states) == 4
        for layer in (-1, -2, -4, 0, 2, 3):
            assert torch.equal(vision.patch_features(tiles(), layer), states[layer][:, 1:])
    for layer in (-5, 4):
        with pytest.raises(ValueError, match=f"select_layer = {layer}, but the encoder has 3"):
            vision.patch_features(tiles(), layer)
    vision.encoder.layers[-1].forward = None  # calling it would fail: the blocks behind are skipped
    assert vision.patch_features(tiles(), -2).shape == (2, 64, VISION["hidden_size"])


def grads(vision, pixels):
    vision.zero_grad()
    vision.patch_features(pixels).square().mean().backward()
    return {name: parameter.grad for name, parameter in vision.named_parameters() if parameter.requires_grad}


def test_gradient_checkpointing_gives_the_same_gradients():
    vision = make_model().vision_model.train()
    vision.embeddings.requires_grad_(False)
    plain = grads(vision, tiles())
    calls = []
    vision.encoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    vision.gradient_checkpointing_enable()
    assert vision.is_gradient_checkpointing
    recomputed = grads(vision, tiles())
    assert len(calls) == 2  # once forward, once again in backward
    assert plain.keys() == recomputed.keys() and len(plain) >= 30
    for name in plain:
        assert plain[name] is not None and plain[name].abs().sum() > 0, name
        torch.testing.assert_close(recomputed[name], plain[name], atol=0, rtol=0)


def test_gradient_checkpointing_reaches_the_encoder_from_the_chat_model():
    model = make_model()
    model.gradient_checkpointing_enable()
    assert model.vision_model.encoder.gradient_checkpointing
    assert model.language_model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.vision_model.encoder.gradient_checkpointing


def test_drop_path_grows_over_the_blocks_and_rests_in_evaluation():
    config = InternVisionConfig(**{**VISION, "drop_path_rate": 0.2})
    vision = InternVisionModel(config)
    assert [layer.drop_path_rate for layer in vision.encoder.layers] == pytest.approx([0.0, 0.1, 0.2])
    x = torch.ones(4000, 2, 3)
    assert drop_path(x, 0.2, training=False) is x
    torch.manual_seed(0)
    dropped = drop_path(x, 0.2, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    # A whole tile goes or stays, and the mean is kept: 4000 draws, standard error 0.008.
    assert (dropped.amin((1, 2)) == dropped.amax((1, 2))).all()
    assert abs(dropped.mean() - 1) < 0.04


def test_another_tile_side_interpolates_positions():
    vision = make_model().vision_model
    stored = vision.embeddings.position_embedding.detach()
    with torch.no_grad():
        interpolated = vision(tiles(side=168)).last_hidden_state
        vision.embeddings.position_embedding = torch.nn.Parameter(resize_positions(stored, 8, 12, 12))
        vision.embeddings.image_size = 168
        assert torch.equal(vision(tiles(side=168)).last_hidden_state, interpolated)
    torch.testing.assert_close(resize_positions(stored, 8, 8, 8), stored, atol=1e-6, rtol=0)


def test_pixels_of_another_dtype_are_cast():
    vision = make_model().vision_model.to(torch.bfloat16)
    assert vision(tiles()).last_hidden_state.dtype == torch.bfloat16


def test_nothing_that_newer_releases_would_lose_or_overwrite():
    """Buffers made in `__init__` come back as garbage in 5.x; an own `_init_weights` overwrote weights in 5.0."""
    model = make_model()
    assert not list(model.vision_model.buffers()) and not list(model.mlp1.buffers())
    for cls in (type(model), type(model.vision_model)):
        assert "_init_weights" not in vars(cls)


def test_what_does_not_fit():
    for change, message in (
        ({"norm_type": "batch_norm"}, "norm_type = 'batch_norm'.*layer_norm, rms_norm"),
        ({"num_attention_heads": 5}, "hidden_size = 48 is no multiple of num_attention_heads = 5"),
    ):
        with pytest.raises(ValueError, match=message):
            InternVisionModel(InternVisionConfig(**{**VISION, **change}))
    vision = make_model().vision_model
    assert vision.encoder.layers[0].attn.use_flash_attn is False  # optimum-intel switches it off where it finds it
    with pytest.raises(ValueError, match=r"not \(3, 112, 112\)"):
        vision(tiles()[0])
