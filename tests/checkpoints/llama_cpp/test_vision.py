"""What llama.cpp can compute of an encoder, and the order of its position embeddings."""

import pytest
import torch

from xtuner_plugins.checkpoints import formats
from xtuner_plugins.checkpoints.errors import CheckpointError
from xtuner_plugins.checkpoints.llama_cpp import vision


@pytest.fixture(scope="module")
def view(toy_base):
    return formats.open_model(toy_base)


def test_fused_projections_become_three(view):
    found = vision.tensors(view.config, view.tensors)
    fused = view.tensors["vision_model.encoder.layers.1.attn.qkv.weight"].read()
    parts = [found[f"v.blk.1.attn_{part}.weight"].read() for part in "qkv"]
    assert torch.equal(torch.cat(parts), fused)
    assert {"v.class_embd", "v.blk.0.ls1.weight", "mm.model.mlp.3.bias"} <= set(found)
    assert not any(name.startswith(("blk", "token")) for name in found)


def test_the_class_tokens_position_is_the_last(view):
    ours = view.tensors["vision_model.embeddings.position_embedding"].read()
    theirs = vision.tensors(view.config, view.tensors)["v.position_embd.weight"].read()
    assert theirs.shape == ours.shape and torch.equal(theirs[:, -1], ours[:, 0])
    assert torch.equal(theirs[:, :-1], ours[:, 1:])


@pytest.mark.parametrize(
    "top, part, message",
    [
        ({"ps_version": "v1"}, {}, "ps_version v1"),
        ({"select_layer": -2}, {}, "select_layer -2"),
        ({"projector_type": "mlp"}, {}, "the projector mlp"),
        ({}, {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}, "the encoder CLIPVisionModel"),
        ({}, {"norm_type": "rms_norm"}, "norm_type rms_norm of 2 layers of width 64"),
        ({}, {"hidden_act": "quick_gelu"}, "hidden_act quick_gelu"),
    ],
)
def test_what_llama_cpp_would_compute_in_another_way_is_refused(view, top, part, message):
    config = {**view.config, **top, "vision_config": {**view.config["vision_config"], **part}}
    with pytest.raises(CheckpointError, match=f"llama.cpp can't run {message}.*tools/web_demo.py runs it"):
        vision.check(config)


def test_the_toys_own_config_passes(view):
    vision.check(view.config)
