"""What trains and what is packed, in parameters."""

from dataclasses import replace

from xtuner_plugins.planning.job import Adapters, Batch
from xtuner_plugins.planning.strategies import plain


def test_frozen_and_trained(warm_up, shape):
    assert warm_up.trained == shape.projector
    assert warm_up.trained + warm_up.frozen == shape.parameters


def test_adapters_are_added_to_frozen_weights(warm_up, shape):
    job = replace(warm_up, adapters={"llm": Adapters(4, ["q_proj", "k_proj"], dropout=False)})
    assert job.adapter_parameters == 2 * 4 * ((16 + 16) + (16 + 8))
    assert job.trained == shape.projector + job.adapter_parameters
    assert job.frozen == shape.parameters - shape.projector
    assert not job.encoder_blocks


def test_packed_weights_are_neither(warm_up, shape):
    job = replace(warm_up, quantized={"llm": ("q_proj", "down_proj")})
    assert job.packed == 2 * (16 * 16 + 64 * 16)
    assert job.packed + job.frozen + job.trained == shape.parameters


def test_dtypes(warm_up):
    assert (warm_up.size, warm_up.autocasts) == (2, True)
    assert (replace(warm_up, half=False).size, replace(warm_up, half=False).autocasts) == (4, False)
    assert not replace(warm_up, float_weights=False).autocasts


def test_zero_3_keeps_what_an_adapted_encoder_computes(warm_up):
    job = replace(warm_up, last_layers=2)
    assert job.group == 1 and replace(job, keeps_encoder=True).group == 0 == replace(job, recompute=False).group
    assert replace(job, encoder_group=8, recompute=False).group == 2 and warm_up.group == 0
    assert plain(2).name == "DDP" and plain(1).name == "one process"
    assert Batch(10, 1, 4).supervised == 4
