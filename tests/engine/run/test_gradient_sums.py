"""What ZeRO is made to do in bfloat16; engines of two ranks are in test_deepspeed_json.py.

No buffer is rounded, ZeRO-1 holds float32 sums alone for the updates it makes, and ZeRO-2 adds up in float32.
"""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.models.batches import build
from xtuner_plugins.engine.run import strategy
from xtuner_plugins.engine.run.gradient_sums import sum_gradients_as_told
from xtuner_plugins.engine.run.steps import unwrap
from xtuner_plugins.engine.run.transfer import read_state

from ..forked import at_call
from ..parallel_case import contents, require_equal

BIG, SMALL = torch.full((4,), 256.0).bfloat16(), torch.full((4,), 0.5).bfloat16()
SUMS_IN_FLOAT32 = dict(partition_gradients=True, dtype=torch.bfloat16, gradient_accumulation_dtype=torch.float32)


def zero_2(**more):
    gather = {"get_all_grad_tensors": lambda tensors, dtype: list(tensors)}
    return SimpleNamespace(**{**SUMS_IN_FLOAT32, "cpu_offload": False, **gather, **more})


def test_gathered_gradients_have_the_dtype_of_the_sum_and_others_stay():
    sum_gradients_as_told(optimizer := zero_2())
    [summed] = optimizer.get_all_grad_tensors([BIG], torch.float32)
    assert summed.add_(SMALL).tolist() == [256.5] * 4 and BIG.add(SMALL).tolist() == [256.0] * 4
    for change in ({"gradient_accumulation_dtype": torch.bfloat16}, {"partition_gradients": False}):
        gather = (optimizer := zero_2(**change)).get_all_grad_tensors
        sum_gradients_as_told(optimizer)
        assert optimizer.get_all_grad_tensors is gather
    sum_gradients_as_told(object())


def test_offloaded_gradients_are_added_to_the_master_gradient():
    """A share in the middle of a parameter; the norm is that of the sum, once, at the end."""
    master, cleared = torch.nn.Parameter(torch.zeros(8)), []
    master.grad = torch.full((8,), 9.0)
    optimizer = zero_2(cpu_offload=True, micro_step_id=0, is_gradient_accumulation_boundary=False)
    optimizer.single_partition_of_fp32_groups, optimizer.norm_for_param_grads = [master], {}
    optimizer.get_param_id, optimizer.grad_position = (lambda parameter: "w"), {"w": [0, 1, 5, 3]}
    optimizer.get_param_gradient_attribute = lambda parameter: parameter
    optimizer.update_offload_overflow_tracker, optimizer.clear_grad_attribute = (lambda grad: None), cleared.append
    sum_gradients_as_told(optimizer)
    optimizer.copy_grads_in_partition(BIG)
    optimizer.micro_step_id, optimizer.is_gradient_accumulation_boundary = 1, True
    optimizer.copy_grads_in_partition(SMALL)
    assert master.grad.tolist() == [9.0] * 5 + [256.5] * 3 and len(cleared) == 1
    assert optimizer.norm_for_param_grads["w"] == torch.tensor([256.5] * 3).double().norm()


CASE = dict(dtype="bfloat16", batch_size=2, accumulative_counts=2, max_grad_norm=0.5, save_steps=2)
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
    """Its float32 masters go on bit-equal, and without DeepSpeed nearly so."""
    run = train("run", deepspeed=f"deepspeed_zero{stage}", prepare=as_ours, **CASE)
    said = f"  strategy: ZeRO-{stage}, weights in bfloat16, gradients summed in float32\n"
    assert said in run.output
    resume, left = ("--resume", str(run.saved(2))), contents(run.saved(4))
    again = train("again", deepspeed=f"deepspeed_zero{stage}", extra=resume, **CASE)
    assert again.logged() == run.logged()[2:]
    require_equal(contents(again.saved(4)), left)
    assert any((value != value.bfloat16()).any() for key, value in left.items() if key.startswith("weight"))
    if stage == 1:
        plain = train("plain", extra=resume, **CASE)
        assert plain.logged() == pytest.approx(run.logged()[2:], rel=0.02)
        weights = read_state(plain.saved(4), with_optimizer=False).weights
        assert weights.keys() == {key.removeprefix("weight ") for key in left if key.startswith("weight ")}
        usual = train("usual", deepspeed="deepspeed_zero1", prepare=as_deepspeed_does, **CASE)
        assert run.logged() == usual.logged() and min(usual.logged("grad_norm")) > 0.5  # clipped
        require_equal(contents(usual.saved(4)), left)
