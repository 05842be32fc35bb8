"""Writes down the gradients of a step, before they are clipped."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from safetensors.torch import load_file, save_file

from ..engine.steps import unwrap

SMALL = 1e-3  # of the whole gradient's norm: smaller tensors are measured against this


@HOOKS.register_module()
class GradientWitness(Hook):
    """Saves each step's gradient, summed over its micro-batches. For one process without DeepSpeed.

    Args:
        folder: Gets a file per step, see `gradient_file`.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._sums: dict[str, torch.Tensor] = {}
        self._handles: list = []

    def before_train(self, runner) -> None:
        """Watches every trained parameter."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, parameter in unwrap(runner.model).named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._note, name)))

    def _note(self, name: str, parameter: torch.Tensor) -> None:
        self._sums[name] = parameter.grad.detach().clone()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Saves the step's gradient."""
        save_file(self._sums, gradient_file(self.folder, batch_idx))
        self._sums = {}

    def after_train(self, runner) -> None:
        """Lets the parameters go."""
        for handle in self._handles:
            handle.remove()


def gradient_file(folder: Path, step: int) -> Path:
    """Where the gradient of a step (from 0) is."""
    return Path(folder) / f"gradient_{step}.safetensors"


def gradient_gap(one: Path, other: Path) -> float:
    """The largest relative difference of a tensor's gradient; infinite where one run has no gradient for it.

    Norm of the difference over the norm of the tensor's gradient, or over a thousandth of the whole gradient's norm
    where that is larger: what is zero but for rounding, as the gradient of a key's bias, differs in all digits.
    """
    left, right = load_file(one), load_file(other)
    if left.keys() != right.keys():
        return float("inf")
    whole = torch.stack([tensor.norm() for tensor in right.values()]).norm()
    gaps = [(left[name] - right[name]).norm() / max(right[name].norm(), SMALL * whole) for name in right]
    return float(torch.stack(gaps).max())
