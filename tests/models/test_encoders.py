"""Each encoder's row trains: a step on a tiny base of each kind, whole and with LoRA."""

import pytest
import torch
from peft import LoraConfig

from tests.models.test_vlm import make_batch, run
from xtuner_plugins.checkpoints.assembly.base import build_base
from xtuner_plugins.families import encoder_family
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.encoders import freeze_unused
from xtuner_plugins.toy.vision_towers import write_tower

LORA = dict(type=LoraConfig, r=2, lora_alpha=4)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def base(request, toy_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_tower(folder / "tower", request.param)
    build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    return str(folder / "base")


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


@pytest.mark.parametrize("recompute", [False, True])
def test_whole_encoder_trains(base, recompute):
    model = VisionLanguageModel(
        base=base, dtype="float32", freeze_visual_encoder=False, gradient_checkpointing=recompute
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


def test_adapters_are_where_the_row_says(base):
    model = VisionLanguageModel(base=base, dtype="float32", visual_encoder_lora=LORA, freeze_projector=True)
    freeze_unused(model.model.vision_model, model.model.select_layer)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    targets = encoder_family(model.model.config.vision_config.to_dict()).lora_targets
    assert len(trainable) == 2 * 2 * len(targets)  # A and B in each of two used layers
    assert all(any(f".{target}.lora_" in name for target in targets) for name in trainable)
    first, second = step(model, tiles_of=(2, 0, 1))
    assert second < first


def test_frozen_encoder_keeps_no_activation(base):
    model = VisionLanguageModel(base=base, dtype="float32")
    assert model._recompute.project(model.model, model._encode(torch.zeros(1, 3, 112, 112))).grad_fn is not None
    assert model.visual_encoder_is_frozen
    with torch.enable_grad():
        assert not model.model.encode_tiles(torch.zeros(1, 3, 112, 112)).requires_grad
    first, second = step(model, tiles_of=(1, 0))
    assert second < first


def test_intern_vit_has_nothing_unused(toy_base):
    model = VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_visual_encoder=False)
    assert freeze_unused(model.model.vision_model, -1) == 0
