"""The gradients that ZeRO's optimizers hold: how they are added up, and in which dtype.

DeepSpeed 0.19 takes ``data_types.grad_accum_dtype`` for ZeRO-2 too, but adds micro-steps up in the dtype of the
weights: in bfloat16 a small gradient beside a large sum is lost. ZeRO-1 and ZeRO-3 do as they are told.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def sum_gradients_as_told(optimizer: Any) -> None:
    """Changes a live ZeRO-2 optimizer, also with offloading; any other is left as it is."""
    dtype = getattr(optimizer, "gradient_accumulation_dtype", None)
    if not getattr(optimizer, "partition_gradients", False) or dtype in (None, getattr(optimizer, "dtype", None)):
        return
    if optimizer.cpu_offload:
        optimizer.copy_grads_in_partition = functools.partial(_add_to_master_gradient, optimizer)
        return
    gather = optimizer.get_all_grad_tensors

    def gather_as_told(tensor_list: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        return [gradient.to(dtype) for gradient in gather(tensor_list, dtype)]

    optimizer.get_all_grad_tensors = gather_as_told


def hold_sums_alone(engine: Any) -> None:
    """Makes ZeRO-1 in bfloat16 hold each gradient once, as its float32 sum; engines of other kinds stay as they are.

    DeepSpeed adds gradients up after the whole backward pass and keeps them, 2 bytes per trained weight. It also copies
    the sums of several groups into one before it exchanges them, 4 bytes more.
    """
    optimizer = engine.optimizer
    if not isinstance(optimizer, BF16_Optimizer):
        return
    optimizer.accumulate_hp_grads_and_remove_lp = functools.partial(_add_and_free, optimizer)
    if not optimizer.immediate_grad_update:
        optimizer.immediate_grad_update = True
        optimizer.create_grad_acc_hooks()
    engine.allreduce_gradients = functools.partial(engine.allreduce_gradients, bucket_size=0)


@torch.no_grad()
def _add_and_free(optimizer: BF16_Optimizer, parameter: torch.nn.Parameter, group: int, index: int) -> None:
    summed = optimizer.fp32_groups_gradients[group][index]
    summed.view_as(parameter).add_(parameter.grad)  # DeepSpeed's own makes a float32 copy of the gradient first
    parameter.grad = None
    optimizer.fp32_groups_has_gradients[group][index] = True


def _add_to_master_gradient(optimizer: Any, parameter: torch.nn.Parameter) -> None:
    """Adds a reduced gradient to the float32 gradient of this rank's share, which lies on the CPU."""
    number = optimizer.get_param_id(parameter)
    group, start, offset, count = optimizer.grad_position[number]
    summed = optimizer.single_partition_of_fp32_groups[group].grad.view(-1).narrow(0, offset, count)
    added = optimizer.get_param_gradient_attribute(parameter).view(-1).narrow(0, start, count).to(summed.device)
    if optimizer.micro_step_id > 0:
        summed.add_(added)
    else:
        summed.copy_(added)
    if optimizer.is_gradient_accumulation_boundary:
        optimizer.norm_for_param_grads[number] = summed.double().norm(2)
        optimizer.update_offload_overflow_tracker(summed)
        optimizer.clear_grad_attribute(parameter)  # frees it now, not at the end of the backward pass
