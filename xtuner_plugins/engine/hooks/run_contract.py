"""Prints what a run trains, read from the live objects before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine._strategy.deepspeed import MMDeepSpeedEngineWrapper
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from torch import nn

from ..loops import planned_loop
from ..optimizers import describe_optimizer
from ..param_groups import num_weights, planned_groups
from ..steps import unwrap


@HOOKS.register_module()
class RunContractHook(Hook):
    """Prints before the first step what the run trains, as the model and the optimizer hold it.

    Raises:
        RuntimeError: The optimizer doesn't hold exactly the trainable parameters, or not at the config's learning rates
            and weight decays.
    """

    priority = "VERY_LOW"

    def before_train(self, runner) -> None:
        """Prints one row per part, parameter group and dataset."""
        model = unwrap(runner.model)
        lines = ["What this run trains:", f"  {'part':<16}{'trainable':>16}{'frozen':>16}  held in"]
        for name, part in model.parts().items():
            trainable, frozen = count_parameters(part)
            lines.append(f"  {name:<16}{trainable:>16,}{frozen:>16,}  {held_in(part)}")
        trained = sum(count_parameters(part)[0] for part in model.parts().values())
        lines.append(f"  optimizer: {describe_optimizer(runner.optim_wrapper.optimizer)}")
        groups = optimizer_groups(runner.optim_wrapper.optimizer)
        for index, (count, lr, weight_decay) in enumerate(groups):
            lines.append(f"  optimizer group {index}: {count:,} parameters, lr {lr:g}, weight decay {weight_decay:g}")
        if isinstance(runner.model, MMDeepSpeedEngineWrapper):
            lines.append(f"  DeepSpeed: {describe_engine(runner.model.model)}")
        dataset = runner.train_dataloader.dataset
        lines.append(
            f"  dataset: {len(dataset):,} samples; {len(runner.train_dataloader):,} micro-batches per rank and epoch"
        )
        lines.append(
            f"  run: {runner.max_iters:,} optimizer steps, {runner.iter:,} of them done; "
            f"micro-batches per step and rank: {planned_loop(runner).micro_batches}; ranks: {runner.world_size}"
        )
        if not all(hook.save_optimizer for hook in runner.hooks if isinstance(hook, CheckpointHook)):
            lines.append("  checkpoints: weights only (save_optimizer=False): not resumable")
        runner.logger.info("\n".join(lines))
        optimized = sum(count for count, _, _ in groups)
        if optimized != trained:
            raise RuntimeError(
                f"the optimizer holds {optimized:,} parameters, but the model trains {trained:,}; "
                "check optim_wrapper.paramwise_cfg and the freeze_* settings"
            )
        _compare_groups(planned_groups(runner.cfg, model), groups)


def _compare_groups(planned: dict[tuple[float, float], int] | None, groups: list[tuple[int, float, float]]) -> None:
    """Raises where the optimizer's learning rates and weight decays aren't the config's; None compares nothing."""
    if planned is None:
        return
    live: dict[tuple[float, float], int] = {}
    for count, lr, weight_decay in groups:
        live[lr, weight_decay] = live.get((lr, weight_decay), 0) + count

    def shown(rates: dict[tuple[float, float], int]) -> str:
        return "; ".join(f"{count:,} at lr {lr:g}, weight decay {wd:g}" for (lr, wd), count in sorted(rates.items()))

    def rounded(rates: dict[tuple[float, float], int]) -> list[tuple[str, str, int]]:
        return sorted((f"{lr:.6g}", f"{wd:.6g}", count) for (lr, wd), count in rates.items())

    if rounded(planned) != rounded(live):
        raise RuntimeError(
            f"the optimizer doesn't hold what the config asks for: it has {shown(live)}; the config asks for "
            f"{shown(planned)}"
        )


def count_parameters(part: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters of a part."""
    counts = {True: 0, False: 0}
    for parameter in part.parameters():
        counts[parameter.requires_grad] += num_weights(parameter)
    return counts[True], counts[False]


def held_in(part: nn.Module) -> str:
    """The dtypes that a part's weights are held in, e.g. ``4-bit nf4, float32``."""
    return ", ".join(sorted({_kind(parameter) for parameter in part.parameters()}))


def _kind(parameter: nn.Parameter) -> str:
    if getattr(parameter, "quant_state", None) is not None:
        return f"4-bit {parameter.quant_state.quant_type}"
    return "8-bit" if parameter.dtype == torch.int8 else str(parameter.dtype).removeprefix("torch.")


def optimizer_groups(optimizer: Any) -> list[tuple[int, float, float]]:
    """(number of weights, base learning rate, weight decay) of each group, as the optimizer holds them.

    The schedule multiplies the base learning rate; during warm-up the current one is lower.
    """
    members = _zero_members(optimizer)
    if members is None:
        # MMEngine gives every parameter to the optimizer; frozen ones get no state and no update.
        members = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
    return [
        (sum(map(num_weights, parameters)), group.get("initial_lr", group["lr"]), group.get("weight_decay", 0.0))
        for parameters, group in zip(members, optimizer.param_groups, strict=True)
    ]


def _zero_members(optimizer: Any) -> list[list[nn.Parameter]] | None:
    """The model's parameters per group of a ZeRO optimizer, which itself holds flat vectors; None for any other."""
    if hasattr(optimizer, "sub_group_to_group_id"):  # ZeRO-3: a group is cut into sub-groups
        groups: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
        for index, parameters in enumerate(optimizer.fp16_groups):
            groups[optimizer.sub_group_to_group_id[index]].extend(parameters)
        return groups
    flattened: Iterable | None = getattr(optimizer, "bit16_groups", None) or getattr(optimizer, "bf16_groups", None)
    return None if flattened is None else [list(parameters) for parameters in flattened]


def describe_engine(engine: Any) -> str:
    """What a live DeepSpeed engine does, for the run contract: stage, dtype of weights and of summed gradients."""
    weights, gradients = (str(dtype).removeprefix("torch.") for dtype in engine.get_data_types())
    text = f"ZeRO-{int(engine.zero_optimization_stage())}, weights in {weights}, gradients summed in {gradients}"
    if gradients != "float32":
        text += ': small ones are lost; set "data_types": {"grad_accum_dtype": "fp32"} in the file of --deepspeed'
    return text
