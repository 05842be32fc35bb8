"""Runs under ZeRO in bfloat16: no buffer is rounded, and ZeRO-1 holds float32 sums alone for the updates it makes."""

from unittest import mock

import pytest
import torch

from tests.models.batches import build
from xtuner_plugins.engine.run import strategy
from xtuner_plugins.engine.run.steps import unwrap

from ..forked import at_call
from ..parallel_case import contents, require_equal

CASE = dict(dtype="bfloat16", batch_size=2, accumulative_counts=2, max_grad_norm=0.5)
FORWARD = "models.vlm.VisionLanguageModel.forward"


def require_whole_buffers(loop, *_):
    """RoPE multiplies its frequencies by positions: rounded ones turn far tokens by radians."""
    network = unwrap(loop.runner.model)
    buffers = dict(network.named_buffers())
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert any(buffer.dtype == torch.float32 for buffer in buffers.values())
    require_equal(buffers, dict(build(loop.runner.cfg.model.base, dtype="bfloat16").named_buffers()))


def require_gradients(are_held, network, *_):
    assert any(p.grad is not None for p in network.parameters()) == are_held


def as_ours():
    at_call("engine.run.loops.PlannedTrainLoop.run_iter", 2, require_whole_buffers)
    at_call(FORWARD, None, lambda *args: require_gradients(False, *args))


def as_deepspeed_does():
    mock.patch.object(strategy, "hold_sums_alone").start()
    at_call(FORWARD, 2, lambda *args: require_gradients(True, *args))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_buffer_is_rounded_and_no_gradient_held_between_micro_steps(train, stage):
    run = train("run", deepspeed=f"deepspeed_zero{stage}", prepare=as_ours, **CASE)
    if stage == 1:
        usual = train("usual", deepspeed="deepspeed_zero1", prepare=as_deepspeed_does, **CASE)
        assert run.logged() == usual.logged() and min(usual.logged("grad_norm")) > 0.5  # clipped
        require_equal(contents(run.saved(4)), contents(usual.saved(4)))
