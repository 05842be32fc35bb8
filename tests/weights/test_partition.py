"""A base loaded under ZeRO-3: no rank ever holds it whole, and the model is the same."""

import pytest
import torch

from tests.weights.training import chat_inputs, logits, run_ranks
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.partition import over_ranks, partition_dtype


@pytest.mark.slow
def test_two_ranks(toy_base, tmp_path):
    run_ranks("tests.weights.partition_case", toy_base, tmp_path / "logits.pt", ranks=2)
    model = load_model(toy_base, dtype=torch.float32)
    model.img_context_token_id = 508
    expected = logits(model, chat_inputs(model))
    # the same weights to the bit, the same arithmetic
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)


def test_the_dtype_that_deepspeed_computes_in():
    on, off = {"enabled": True}, {"enabled": False}
    table = [({"bf16": on}, torch.bfloat16), ({"fp16": on, "bf16": off}, torch.float16), ({"bf16": off}, torch.float32)]
    for config, dtype in (*table, ({}, torch.float32)):
        assert partition_dtype(config) == dtype
    with pytest.raises(ValueError, match="stage is 2"):
        over_ranks({"zero_optimization": {"stage": 2}})
