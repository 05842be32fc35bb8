"""Recomputation by part: no loss and no gradient changes, and less is kept."""

import pytest
import torch
from peft import LoraConfig

from tests.models.test_vlm import kept_bytes, make_batch, run
from xtuner_plugins.checkpoints.assembly.base import build_base
from xtuner_plugins.models import VisionLanguageModel, recompute
from xtuner_plugins.models.recompute import Recompute
from xtuner_plugins.toy.models import write_random_parts

KEEPS = dict(gradient_checkpointing=False)
WAYS = {
    "llm alone": dict(gradient_checkpointing=True, visual_encoder_checkpointing=False),
    "encoder alone": dict(gradient_checkpointing=False, visual_encoder_checkpointing=True),
    "encoder in twos": dict(gradient_checkpointing=False, visual_encoder_checkpointing=2),
    "encoder in one": dict(gradient_checkpointing=False, visual_encoder_checkpointing=9),
    "projector alone": dict(gradient_checkpointing=False, projector_checkpointing=True),
    "all": dict(gradient_checkpointing=True, visual_encoder_checkpointing=3, projector_checkpointing=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An encoder of five blocks, so that groups don't come out even."""
    folder = tmp_path_factory.mktemp("deep")
    build_base(*write_random_parts(folder, vision_overrides={"num_hidden_layers": 5}), folder / "base", dtype="float32")
    return str(folder / "base")


def build(base, **settings):
    torch.manual_seed(0)
    settings = {"freeze_visual_encoder": False, "freeze_llm": False, **settings}
    return VisionLanguageModel(base=base, dtype="float32", **settings).train()


def gradients(model):
    loss = run(model, make_batch(model))["loss"]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "trains",
    [
        {},
        {"freeze_visual_encoder": True, "visual_encoder_last_layers": 3},
        {"freeze_visual_encoder": True, "visual_encoder_lora": dict(type=LoraConfig, r=2, lora_dropout=0.2)},
    ],
    ids=["whole", "last", "lora"],
)
def test_nothing_changes_but_what_is_kept(base, way, trains):
    """Bit for bit: the same operations run twice, dropout included."""
    results = []
    for settings in (KEEPS, WAYS[way]):
        model = build(base, **trains, **settings)
        torch.manual_seed(1)
        results.append(gradients(model))
    (expected_loss, expected), (loss, found) = results
    assert loss == expected_loss and found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_each_part_keeps_less_by_itself(base):
    batch = make_batch(build(base, **KEEPS))
    kept = {name: kept_bytes(build(base, **settings), batch)[0] for name, settings in {"none": KEEPS, **WAYS}.items()}
    assert all(kept[name] < kept["none"] for name in WAYS)
    # Five blocks: the inputs of five, of three groups, of one.
    tiles, positions, width = batch["tiles"].shape[0], 65, 64
    one_input = tiles * positions * width * 4
    assert kept["encoder alone"] - kept["encoder in twos"] == pytest.approx(2 * one_input, rel=0.05)
    assert kept["encoder in twos"] - kept["encoder in one"] == pytest.approx(2 * one_input, rel=0.05)


def test_blocks_that_no_gradient_reaches_belong_to_no_group(base):
    model = build(base, freeze_visual_encoder=True, visual_encoder_last_layers=2, visual_encoder_checkpointing=2)
    calls = []
    for index, block in enumerate(model.model.vision_model.encoder.layers):
        block.register_forward_pre_hook(lambda _m, _i, index=index: calls.append(index))
    run(model, make_batch(model))["loss"].backward()
    assert calls == [0, 1, 2, 3, 4, 3, 4]  # the last two, together, once more


def test_a_group_is_a_number_of_blocks(base):
    with pytest.raises(ValueError, match="visual_encoder_checkpointing=-1 is no number of blocks"):
        Recompute(True, -1, False)
    assert Recompute(True, None, False).encoder_group == Recompute(False, True, False).encoder_group == 1
    assert Recompute(True, False, False).encoder_group == Recompute(False, None, False).encoder_group == 0


def test_zero_3_recomputes_no_projector(base, monkeypatch):
    monkeypatch.setattr(recompute, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="projector_checkpointing=True: ZeRO-3 releases .*; use --deepspeed"):
        build(base, projector_checkpointing=True)
