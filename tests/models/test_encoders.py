"""Each encoder's row trains: a step on a tiny base of each kind, whole and with LoRA; and stochastic depth."""

import json
import shutil

import pytest
import torch

from xtuner_plugins.families import encoder_family
from xtuner_plugins.models.encoders import freeze_unused

from .batches import LORA, build, learn, make_batch

both = pytest.mark.parametrize("encoder_base", ["clip", "siglip"], indirect=True)


@both
def test_whole_encoder_trains(encoder_base, toy_base):
    """3 layers, the second one's output: the last layer (16 tensors) and the final norm (2) are used nowhere."""
    for recompute in (False, True):
        model = build(encoder_base, freeze_visual_encoder=False, gradient_checkpointing=recompute)
        encoder = model.model.vision_model
        assert sum(not p.requires_grad for p in encoder.parameters()) == 18
        assert freeze_unused(encoder, model.model.select_layer) == 0
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        first, second = learn(model, make_batch(model, length=160), 2, lr=0.05)
        still = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
        # Keys' biases move every score of a query alike, so softmax gives them no gradient but rounding.
        assert second < first and [name for name in still if not name.endswith("k_proj.bias")] == []
    assert freeze_unused(build(toy_base, freeze_visual_encoder=False).model.vision_model, -1) == 0


@both
def test_adapters_are_where_the_row_says(encoder_base):
    model = build(encoder_base, visual_encoder_lora=LORA, freeze_projector=True)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    targets = encoder_family(model.model.config.vision_config.to_dict()).lora_targets
    assert len(trainable) == 2 * 2 * len(targets)  # A and B in each of two used layers
    assert all(any(f".{target}.lora_" in name for target in targets) for name in trainable)
    first, second = learn(model, make_batch(model, length=160), 2, lr=0.05)
    assert second < first
    for rate, message in ((1.0, "drop_path=1.0 is out of range"), (0.1, "InternViT has; set it to 0")):
        with pytest.raises(ValueError, match=message):
            build(encoder_base, drop_path=rate)


def encoded(model, seed=0):
    torch.manual_seed(seed)
    return model._encode(torch.ones(4, 3, model.tile_size, model.tile_size))


def test_drop_path_is_that_of_the_settings_and_only_of_what_trains(toy_base, tmp_path):
    """Whatever the base says: official exports name the rate of their training."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["vision_config"]["drop_path_rate"] = 0.9
    (base / "config.json").write_text(json.dumps(config))
    plain, dropping = (build(base, freeze_visual_encoder=False, drop_path=rate).train() for rate in (0.0, 0.5))
    blocks = dropping.model.vision_model.encoder.layers
    expected = [0.5 * index / (len(blocks) - 1) for index in range(len(blocks))]
    assert [block.drop_path_rate for block in blocks] == expected
    assert torch.equal(encoded(plain, 0), encoded(plain, 1))
    assert torch.equal(encoded(dropping, 0), encoded(dropping, 0))  # seed, rank and step decide: `seed_step`
    assert not torch.equal(encoded(dropping, 0), encoded(dropping, 1))
    for model in (build(base, drop_path=0.5).train(), dropping.eval()):
        assert torch.equal(encoded(model), encoded(plain))
    for trains in (dict(visual_encoder_last_layers=1), dict(visual_encoder_lora=LORA)):
        assert not torch.equal(encoded(build(base, drop_path=0.5, **trains).train()), encoded(plain)), trains
