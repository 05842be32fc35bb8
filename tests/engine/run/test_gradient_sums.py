"""What ZeRO-2 is made to do; real engines are in test_deepspeed_json.py, ZeRO-1 in test_half_precision.py."""

from types import SimpleNamespace

import torch

from xtuner_plugins.engine.run.gradient_sums import sum_gradients_as_told

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
