"""What DeepSpeed's files say. Names that don't exist: tests/test_deepspeed_json.py."""

import re
from dataclasses import replace

import pytest

from xtuner_plugins.planning.strategies import from_deepspeed, obstacle, plain
from xtuner_plugins.settings import read_deepspeed


@pytest.mark.parametrize(
    "name, stage, optimizer, weights",
    [
        ("deepspeed_zero1", 1, False, False),
        ("deepspeed_zero2", 2, False, False),
        ("deepspeed_zero2_offload", 2, True, False),
        ("deepspeed_zero3", 3, False, False),
        ("deepspeed_zero3_offload", 3, True, True),
    ],
)
def test_shipped_files(name, stage, optimizer, weights):
    strategy = from_deepspeed(name, read_deepspeed(name), 8)
    assert (strategy.stage, strategy.offload_optimizer, strategy.offload_weights) == (stage, optimizer, weights)
    assert (strategy.name, strategy.gpus) == (name, 8)


def test_a_file_of_ones_own():
    zero = {"stage": 3, "reduce_bucket_size": 5e7, "stage3_max_live_parameters": 1e8, "overlap_comm": False}
    strategy = from_deepspeed("mine", {"zero_optimization": zero, "data_types": {"grad_accum_dtype": "fp32"}}, 2)
    assert (strategy.bucket, strategy.live, strategy.overlap) == (50_000_000, 100_000_000, False)
    assert strategy.gradient_size == 4


def test_no_stage_is_refused():
    with pytest.raises(ValueError, match="stage is 0; plans are made for 1, 2 and 3"):
        from_deepspeed("mine", {"zero_optimization": {"stage": 0}}, 2)
    assert plain(4).stage is None


def test_what_cannot_be_partitioned(warm_up):
    two, three = (from_deepspeed("mine", {"zero_optimization": {"stage": stage}}, 2) for stage in (2, 3))
    for job, words in (
        (replace(warm_up, quantized={"llm": ["q_proj"]}), "packed weights"),
        (replace(warm_up, pairs=True, reference=True), "frozen copy .* precompute_reference=True"),
    ):
        assert obstacle(job, two) == obstacle(job, plain(2)) == ""
        assert re.search(words, obstacle(job, three))
    assert obstacle(replace(warm_up, pairs=True), three) == ""
    assert obstacle(replace(warm_up, whole=frozenset(), pairs=True, reference=True), three) == ""
