"""Recomputation by part: no loss and no gradient changes, and less is kept."""

import pytest
import torch

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.models import recompute
from xtuner_plugins.toy.models import write_random_parts

from . import batches
from .batches import LORA, WHOLE, assert_same, backward, kept_bytes, make_batch, run

KEEPS = dict(gradient_checkpointing=False)
WAYS = {
    "llm alone": dict(gradient_checkpointing=True, visual_encoder_checkpointing=False),
    "encoder alone": dict(gradient_checkpointing=False, visual_encoder_checkpointing=True),
    "all": dict(gradient_checkpointing=True),
    "all, on the host": dict(gradient_checkpointing=True, offload_activations=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    build_base(*write_random_parts(folder, vision_overrides={"num_hidden_layers": 5}), folder / "base", dtype="float32")
    return str(folder / "base")


def build(base, **settings):
    return batches.build(base, **{**WHOLE, **settings}).train()


def test_nothing_changes_but_what_is_kept(base):
    """Bit for bit: the same operations run twice, dropout included."""
    for trains in (
        {"drop_path": 0.5},
        {"freeze_visual_encoder": True, "visual_encoder_last_layers": 3},
        {"freeze_visual_encoder": True, "visual_encoder_lora": LORA | {"lora_dropout": 0.2}},
    ):
        results = []
        for settings in (KEEPS, *WAYS.values()):
            model = build(base, **trains, **settings)
            torch.manual_seed(1)
            results.append(backward(model, make_batch(model)))
        for loss, found in results[1:]:
            assert loss == results[0][0]
            assert_same(found, results[0][1], rtol=0, atol=0)


def test_each_part_keeps_less_by_itself(base):
    batch = make_batch(build(base, **KEEPS))
    kept = {name: kept_bytes(build(base, **settings), batch) for name, settings in {"none": KEEPS, **WAYS}.items()}
    assert all(kept[name] < kept["none"] for name in WAYS)
    assert kept["all"] < min(kept["llm alone"], kept["encoder alone"])
    inputs = 2 * batch["attention_mask"].sum() * 64 * 4  # of two blocks of the LLM, 64 numbers of 4 bytes per token
    assert kept["all"] - kept["all, on the host"] >= inputs
    with pytest.raises(ValueError, match="offload_activations=True needs gradient_checkpointing=True"):
        build(base, gradient_checkpointing=False, offload_activations=True)


def test_blocks_that_no_gradient_reaches_run_once(base):
    model = build(base, freeze_visual_encoder=True, visual_encoder_last_layers=2)
    calls = []
    for index, block in enumerate(model.model.vision_model.encoder.layers):
        block.register_forward_pre_hook(lambda _m, _i, index=index: calls.append(index))
    run(model, make_batch(model))["loss"].backward()
    assert calls == [0, 1, 2, 3, 4, 4, 3]


def test_under_zero_3(base, monkeypatch, caplog):
    """The LLM in the reentrant way, the encoder in the other one, but not with LoRA."""
    ways, lora = [], dict(freeze_visual_encoder=True, visual_encoder_lora=LORA)
    monkeypatch.setattr(recompute, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(recompute, "_enable", lambda part, reentrant: ways.append((type(part).__name__, reentrant)))
    model = build(base)
    assert ways == [("Qwen2ForCausalLM", True), ("InternVisionModel", False)]
    assert model.model.language_model.get_input_embeddings()(torch.tensor([1])).requires_grad
    build(base, **lora)
    assert ways[2:] == [("Qwen2ForCausalLM", True)]
