"""Which module made a loss or a gradient infinite or not a number: found by running the step's batch once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank
from torch import nn
from torch.utils._pytree import tree_leaves


def blame_loss(network: nn.Module, batch: Mapping[str, Any], is_at_fault: bool) -> str | None:
    """Where a loss that isn't finite began; all ranks call it together, each with one batch.

    Args:
        network: The `VisionLanguageModel` without wrappers, with the weights of that step.
        batch: A collated batch of the step.
        is_at_fault: Whether this batch had such a loss.

    Returns:
        The weights of a module, if they aren't finite themselves, or the output of the first module whose output isn't;
        None if the loss is finite this time. The same on every rank.
    """
    bad = bad_parameters(network)
    found = [] if bad else _bad_outputs(network, batch)
    ranks = all_gather_object((bad, found if is_at_fault else []))
    weights = next((names[0] for names, _ in ranks if names), None)
    if weights is not None:
        return f"the weights of {_module_of(weights)}"
    output = next((names[0] for _, names in ranks if names), None)
    return None if output is None else f"the output of {output}"


def blame_gradient(network: nn.Module, micro_batches: Sequence[Mapping[str, Any]]) -> tuple[str | None, list]:
    """Where a gradient that isn't finite began, in a plain or DDP run whose weights weren't updated with it.

    Returns:
        The gradient of a module, the same on every rank, or None if all are finite this time; and the micro-batches of
        this rank that have such a gradient.
    """
    found: list[str] = []
    at_fault = []
    handles = [
        parameter.register_hook(lambda gradient, name=name: _note(found, name, gradient))
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    ]
    for batch in micro_batches:
        before = len(found)
        network(**network.data_preprocessor(batch), mode="loss")["loss"].backward()
        at_fault += [batch] if len(found) > before else []
    for handle in handles:
        handle.remove()
    name = next((names[0] for names in all_gather_object(found) if names), None)
    return None if name is None else f"the gradient of {_module_of(name)}", at_fault


def blame_update(network: nn.Module) -> str | None:
    """Where a gradient that isn't finite began, after DeepSpeed has updated the weights with it.

    Clipping by an infinite norm makes every other gradient 0, so it is the updated weights that aren't finite. The
    backward pass reaches the last of them first.
    """
    bad = {name for names in all_gather_object(bad_parameters(network)) for name in names}
    names = {parameter: name for name, parameter in network.named_parameters()}
    in_order = [names[parameter] for part in network.parts().values() for parameter in part.parameters()]
    last = next((name for name in reversed(in_order) if name in bad), None)
    return None if last is None else f"the gradient of {_module_of(last)}"


def bad_parameters(network: nn.Module) -> list[str]:
    """Names of parameters with a value that isn't finite, in this rank's share."""
    return [name for name, p in network.named_parameters() if not _is_finite(_held_values(p))]


def _held_values(parameter: nn.Parameter) -> torch.Tensor:
    """The values of a parameter that this rank holds: all of them, or its share under ZeRO-3.

    Shares have equal lengths, so the last ones end with memory that nothing initializes; it isn't returned.
    """
    share = getattr(parameter, "ds_tensor", None)
    if share is None:
        return parameter
    return share[: max(0, parameter.ds_numel - share.numel() * get_rank())]


@torch.no_grad()
def _bad_outputs(network: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """Modules whose output isn't finite, in the order in which they end; a part ends before its whole."""
    found: list[str] = []

    def look(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, torch.Tensor):
                    _note(found, name, tensor)

        return hook

    inputs = network.data_preprocessor(batch)
    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    network(**inputs, mode="loss")
    for handle in handles:
        handle.remove()
    return found


def _note(found: list[str], name: str, tensor: torch.Tensor) -> None:
    if not _is_finite(tensor):
        found.append(name)


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
