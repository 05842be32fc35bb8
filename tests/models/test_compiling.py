"""Compiled blocks: the same loss and gradients, the same names of weights, no new graph with every batch."""

import pytest
import torch

from xtuner_plugins.models import blocks
from xtuner_plugins.models.blocks import compile_model_blocks

from .batches import LORA, assert_same, backward, build, make_batch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_other_lengths_make_no_new_graphs_and_names_stay(toy_base):
    """Losses and gradients neither, of weights and adapters, with recomputation; the graphs run as they were traced."""
    graphs, counts = [], []
    eager, compiled = (build(toy_base, freeze_llm=False, visual_encoder_lora=LORA).train() for _ in range(2))
    assert compile_model_blocks(compiled.model, backend=lambda graph, inputs: graphs.append(graph) or graph) == 4
    assert list(compiled.state_dict()) == list(eager.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in eager.named_modules()]
    for length in (70, 83, 96):
        batch = make_batch(eager, length=length)
        (loss, found), (expected_loss, expected) = backward(compiled, batch), backward(eager, batch)
        # Float32 sums in another order; gradients of keys' biases are nothing but rounding.
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
        assert_same(found, expected, rtol=1e-4, atol=1e-6)
        counts.append(len(graphs))
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2


def test_what_can_not_be_compiled_is_refused(toy_base, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    for settings, changed, message in (
        (dict(llm_lora=LORA, llm_quantization=dict(load_in_4bit=True)), {}, "packed weights .* aren't compiled"),
        (dict(drop_path=0.1), {}, "stochastic depth"),
        ({}, {"is_deepspeed_zero3_enabled": lambda: True}, "ZeRO-3 gathers and releases weights"),
        ({}, {"COMPILERS": ()}, "needs a C\\+\\+ compiler, and none is found"),
    ):
        with monkeypatch.context() as patch:
            for name, value in changed.items():
                patch.setattr(blocks, name, value)
            with pytest.raises(ValueError, match=f"^compile_blocks=True: .*{message}"):
                build(toy_base, compile_blocks=True, **settings)
    (tmp_path / "my-c++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "my-c++")
    build(toy_base, compile_blocks=True)
