"""What ZeRO-2 is made to do; that real engines then sum in float32 is in test_deepspeed_json.py.

What ZeRO-1 is made to do is in test_half_precision.py.
"""

from types import SimpleNamespace

import torch

from xtuner_plugins.engine.run.gradient_sums import sum_gradients_as_told

BIG, SMALL = torch.full((4,), 256.0).bfloat16(), torch.full((4,), 0.5).bfloat16()


def zero_2(**more):
    return SimpleNamespace(
        partition_gradients=True,
        dtype=torch.bfloat16,
        gradient_accumulation_dtype=torch.float32,
        cpu_offload=False,
        get_all_grad_tensors=lambda tensors, dtype: list(tensors),
        **more,
    )


def test_gathered_gradients_have_the_dtype_of_the_sum():
    optimizer = zero_2()
    sum_gradients_as_told(optimizer)
    [summed] = optimizer.get_all_grad_tensors([BIG], torch.float32)
    assert summed.add_(SMALL).tolist() == [256.5] * 4 and BIG.add(SMALL).tolist() == [256.0] * 4


def test_offloaded_gradients_are_added_to_the_master_gradient():
    """A share in the middle of a parameter; the norm is that of the sum, once, at the end."""
    optimizer = zero_2()
    optimizer.cpu_offload, optimizer.micro_step_id, optimizer.is_gradient_accumulation_boundary = True, 0, False
    optimizer.single_partition_of_fp32_groups = [torch.nn.Parameter(torch.zeros(8))]
    optimizer.single_partition_of_fp32_groups[0].grad = torch.full((8,), 9.0)
    optimizer.grad_position, optimizer.norm_for_param_grads = {"w": [0, 1, 5, 3]}, {}
    optimizer.get_param_id, cleared = (lambda parameter: "w"), []
    optimizer.get_param_gradient_attribute = lambda parameter: parameter
    optimizer.update_offload_overflow_tracker, optimizer.clear_grad_attribute = (lambda grad: None), cleared.append
    sum_gradients_as_told(optimizer)
    optimizer.copy_grads_in_partition(BIG)
    optimizer.micro_step_id, optimizer.is_gradient_accumulation_boundary = 1, True
    optimizer.copy_grads_in_partition(SMALL)
    assert optimizer.single_partition_of_fp32_groups[0].grad.tolist() == [9.0] * 5 + [256.5] * 3
    assert optimizer.norm_for_param_grads["w"] == torch.tensor([256.5] * 3).double().norm() and len(cleared) == 1


def test_others_stay_as_they_are():
    for change in ({"gradient_accumulation_dtype": torch.bfloat16}, {"partition_gradients": False}):
        optimizer = zero_2()
        gather = optimizer.get_all_grad_tensors
        vars(optimizer).update(change)
        sum_gradients_as_told(optimizer)
        assert optimizer.get_all_grad_tensors is gather
    sum_gradients_as_told(object())
