"""Hooks that keep a run honest: what it trains is printed from live objects, what it loads must fit."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn


@HOOKS.register_module()
class RunContractHook(Hook):
    """Prints, before the first step, what the run really does, read from the model and the optimizer themselves.

    Raises:
        RuntimeError: The optimizer doesn't hold exactly the trainable parameters.
    """

    priority = "VERY_LOW"

    def before_train(self, runner) -> None:
        """Prints one row a part, one a parameter group, one a dataset."""
        model = unwrap(runner.model)
        lines = ["What this run trains:", f"  {'part':<16}{'trainable':>16}{'frozen':>16}  held in"]
        for name, part in model.parts().items():
            trainable, frozen = count_parameters(part)
            dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in part.parameters()})
            lines.append(f"  {name:<16}{trainable:>16,}{frozen:>16,}  {', '.join(dtypes)}")
        trained = sum(count_parameters(part)[0] for part in model.parts().values())
        groups, num_optimized = optimizer_groups(runner.optim_wrapper)
        for index, (count, lr, weight_decay) in enumerate(groups):
            lines.append(f"  optimizer group {index}: {count:,} parameters, lr {lr:g}, weight decay {weight_decay:g}")
        dataset = runner.train_dataloader.dataset
        lines.append(f"  dataset: {len(dataset):,} samples; {len(runner.train_dataloader):,} batches a rank and epoch")
        runner.logger.info("\n".join(lines))
        if num_optimized is not None and num_optimized != trained:
            raise RuntimeError(
                f"the optimizer holds {num_optimized:,} parameters, but the model trains {trained:,}; "
                "check optim_wrapper.paramwise_cfg and the freeze_* settings"
            )


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuses a checkpoint that isn't of this model: MMEngine would load what fits and warn about the rest.

    Raises:
        ValueError: Parameters are missing from the checkpoint, unknown to the model, or differ in shape.
    """

    def after_load_checkpoint(self, runner, checkpoint: Mapping) -> None:
        """Compares names and shapes before MMEngine loads them."""
        if "state_dict" not in checkpoint:  # DeepSpeed loads (and checks) its own partitions.
            return
        expected = {name: tuple(value.shape) for name, value in unwrap(runner.model).state_dict().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        complaints = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
        complaints += [f"unknown {name}" for name in sorted(found.keys() - expected.keys())]
        complaints += [
            f"{name} is {found[name]}, the model has {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if expected[name] != found[name]
        ]
        if complaints:
            shown = "; ".join(complaints[:5]) + (f"; and {len(complaints) - 5} more" if len(complaints) > 5 else "")
            raise ValueError(
                f"this checkpoint is of another model or another choice of trained parts: {shown}. "
                "Resume with the config that wrote it."
            )


def unwrap(model: nn.Module) -> nn.Module:
    """The `VisionLanguageModel` inside DDP or DeepSpeed wrappers."""
    while not hasattr(model, "parts"):
        model = model.module if isinstance(model, nn.Module) and hasattr(model, "module") else model.model
    return model


def count_parameters(part: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters; under ZeRO-3, of the whole parameter and not of this rank's share."""
    counts = {True: 0, False: 0}
    for parameter in part.parameters():
        counts[parameter.requires_grad] += getattr(parameter, "ds_numel", parameter.numel())
    return counts[True], counts[False]


def optimizer_groups(optim_wrapper) -> tuple[list[tuple[int, float, float]], int | None]:
    """(parameters, lr, weight decay) of each group, and the total; the total is None where ZeRO flattened them."""
    optimizer = optim_wrapper.optimizer
    flattened = not hasattr(optimizer, "state") or "ZeroOptimizer" in type(optimizer).__name__
    groups = []
    for group in optimizer.param_groups:
        # MMEngine hands every parameter to the optimizer; one without gradient gets no state and no update.
        count = sum(getattr(p, "ds_numel", p.numel()) for p in group["params"] if p.requires_grad)
        groups.append((count, group["lr"], group.get("weight_decay", 0.0)))
    return groups, None if flattened else sum(count for count, _, _ in groups)
