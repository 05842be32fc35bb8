"""Blocks that are recomputed or compiled: no loss and no gradient changes, less is kept, graphs serve every batch."""

import pytest
import torch
from torch.testing import assert_close

from xtuner_plugins.models import blocks
from xtuner_plugins.models.blocks import compile_model_blocks

from . import batches
from .batches import LORA, WHOLE, backward, make_batch, run

WAYS = {  # the first keeps all
    "none": dict(gradient_checkpointing=False),
    "llm alone": dict(gradient_checkpointing=True, visual_encoder_checkpointing=False),
    "encoder alone": dict(gradient_checkpointing=False, visual_encoder_checkpointing=True),
    "all": dict(gradient_checkpointing=True),
    "all, on the host": dict(gradient_checkpointing=True, offload_activations=True),
}


def build(base, **settings):
    return batches.build(base, **{**WHOLE, **settings}).train()


def kept_bytes(model, batch):
    """Bytes of activations that the graph of a loss keeps, parameters aside."""
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(model, batch)
        return sum(size for place, size in kept.items() if place not in own)


def test_nothing_changes_but_what_is_kept(toy_base):
    """Bit for bit: the same operations run twice, dropout included. A gradient passes through a frozen LLM, too."""
    frozen = {"freeze_visual_encoder": True}
    for trains in (
        {"drop_path": 0.5},
        {"visual_encoder_last_layers": 1, **frozen},
        {"visual_encoder_lora": LORA | {"lora_dropout": 0.2}, **frozen},
        {"freeze_llm": True, **frozen},
    ):
        results, kept = [], {}
        for name, settings in WAYS.items():
            model = build(toy_base, **trains, **settings)
            batch = make_batch(model)
            torch.manual_seed(1)
            results.append(backward(model, batch))
            kept[name] = kept_bytes(model, batch)
            assert_close(results[-1], results[0], rtol=0, atol=0)
        inputs = 2 * batch["attention_mask"].sum() * 64 * 4  # of two blocks of the LLM, 64 numbers of 4 bytes per token
        assert kept["all"] <= kept["llm alone"] < kept["none"] - 4 * inputs
        assert kept["encoder alone"] < kept["none"] or "freeze_llm" in trains
        assert kept["all"] - kept["all, on the host"] >= inputs


def test_under_zero_3(toy_base, monkeypatch):
    """The LLM in the reentrant way, the encoder in the other one, but not with LoRA; nothing is compiled."""
    ways = []
    monkeypatch.setattr(blocks, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(blocks, "_enable", lambda part, reentrant: ways.append((type(part).__name__, reentrant)))
    model = build(toy_base)
    assert ways == [("Qwen2ForCausalLM", True), ("InternVisionModel", False)]
    assert model.model.language_model.get_input_embeddings()(torch.tensor([1])).requires_grad
    build(toy_base, freeze_visual_encoder=True, visual_encoder_lora=LORA)
    assert ways[2:] == [("Qwen2ForCausalLM", True)]
    with pytest.raises(ValueError, match="^compile_blocks=True: ZeRO-3 gathers and releases weights"):
        build(toy_base, compile_blocks=True)


def test_other_batches_make_no_new_graphs_and_names_stay(toy_base):
    """Of other lengths and numbers of samples. The graphs run as they were traced, with the same losses and gradients.

    Weights and adapters train, with recomputation.
    """
    torch._dynamo.reset()
    graphs, counts = [], []
    eager, compiled = (batches.build(toy_base, freeze_llm=False, visual_encoder_lora=LORA).train() for _ in range(2))
    assert compile_model_blocks(compiled.model, backend=lambda graph, inputs: graphs.append(graph) or graph) == 4
    assert list(compiled.state_dict()) == list(eager.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in eager.named_modules()]
    for batch in (make_batch(eager, *each) for each in (((2, 0, 1), 70), ((1, 2), 83), ((2, 0, 1, 0), 96))):
        (loss, found), (expected_loss, expected) = (backward(each, batch) for each in (compiled, eager))
        # Float32 sums in another order; gradients of keys' biases are nothing but rounding.
        assert_close(loss, expected_loss, rtol=1e-6, atol=0)
        assert_close(found, expected, rtol=1e-4, atol=1e-6)
        counts.append(len(graphs))
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2
