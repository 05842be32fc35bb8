"""Each encoder's row trains: a step on a tiny base of each kind, whole and with LoRA."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig

from tests.models.test_vlm import make_batch, run
from xtuner_plugins.families import encoder_family
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.encoders import freeze_unused

LORA = dict(type=LoraConfig, r=2, lora_alpha=4)


both = pytest.mark.parametrize("encoder_base", ["clip", "siglip"], indirect=True)


def step(model, **batch_options):
    """Losses of two steps on the same batch."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.05)
    batch = make_batch(model, length=160, **batch_options)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = run(model.train(), batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@both
@pytest.mark.parametrize("recompute", [False, True])
def test_whole_encoder_trains(encoder_base, recompute):
    model = VisionLanguageModel(
        base=encoder_base, dtype="float32", freeze_visual_encoder=False, gradient_checkpointing=recompute
    )
    encoder = model.model.vision_model
    # 3 layers, the second one's output: the last layer (16 tensors) and the final norm (2) are used nowhere.
    freeze_unused(encoder, model.model.select_layer)
    assert sum(not p.requires_grad for p in encoder.parameters()) == 18
    assert freeze_unused(encoder, model.model.select_layer) == 0
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    first, second = step(model, tiles_of=(2, 0, 1))
    assert second < first
    still = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
    # Keys' biases move every score of a query alike, so softmax gives them no gradient but rounding.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


@both
def test_adapters_are_where_the_row_says(encoder_base):
    model = VisionLanguageModel(base=encoder_base, dtype="float32", visual_encoder_lora=LORA, freeze_projector=True)
    freeze_unused(model.model.vision_model, model.model.select_layer)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    targets = encoder_family(model.model.config.vision_config.to_dict()).lora_targets
    assert len(trainable) == 2 * 2 * len(targets)  # A and B in each of two used layers
    assert all(any(f".{target}.lora_" in name for target in targets) for name in trainable)
    first, second = step(model, tiles_of=(2, 0, 1))
    assert second < first


def test_intern_vit_has_nothing_unused(toy_base):
    model = VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_visual_encoder=False)
    assert freeze_unused(model.model.vision_model, -1) == 0


def encoded(model, seed=0):
    torch.manual_seed(seed)
    return model._encode(torch.ones(4, 3, model.tile_size, model.tile_size))


def test_drop_path_is_that_of_the_settings_and_only_of_what_trains(toy_base, tmp_path):
    """Whatever the base says: official exports name the rate of their training."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["vision_config"]["drop_path_rate"] = 0.9
    (base / "config.json").write_text(json.dumps(config))

    def build(**settings):
        return VisionLanguageModel(base=str(base), dtype="float32", **settings).train()

    plain, dropping = (build(freeze_visual_encoder=False, drop_path=rate) for rate in (0.0, 0.5))
    blocks = dropping.model.vision_model.encoder.layers
    expected = [0.5 * index / (len(blocks) - 1) for index in range(len(blocks))]
    assert [block.drop_path_rate for block in blocks] == expected
    assert torch.equal(encoded(plain, 0), encoded(plain, 1))
    assert torch.equal(encoded(dropping, 0), encoded(dropping, 0))  # seed, rank and step decide: `seed_step`
    assert not torch.equal(encoded(dropping, 0), encoded(dropping, 1))
    frozen = build(drop_path=0.5)
    for model in (frozen, dropping.eval()):
        assert torch.equal(encoded(model), encoded(plain))
    assert all(torch.equal(encoded(build(drop_path=0.5, **trains)), encoded(plain)) is False for trains in PARTLY)


PARTLY = [dict(visual_encoder_last_layers=1), dict(visual_encoder_lora=LORA)]


@both
@pytest.mark.parametrize("rate, message", [(1.0, "drop_path=1.0 is out of range"), (0.1, "InternViT has; set it to 0")])
def test_a_rate_that_no_encoder_has(encoder_base, rate, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageModel(base=encoder_base, dtype="float32", drop_path=rate)
