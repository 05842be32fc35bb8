"""A frozen linear layer in 8 bits (LLM.int8, arXiv 2208.07339) that moves with its model. Slow to import."""

from __future__ import annotations

from collections.abc import Callable

import bitsandbytes as bnb
import torch
from torch import nn


class PackedLinear8bit(bnb.nn.Linear8bitLt):
    """A linear layer, packed at once; bitsandbytes would pack it on its way to a GPU and lose its scales on the next.

    Args:
        linear: The layer; its bias is kept as it is.
        threshold: Input columns with a value above it are multiplied in float16; 0 multiplies all in 8 bits.
    """

    def __init__(self, linear: nn.Linear, threshold: float):
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        super().__init__(*sizes, has_fp16_weights=False, threshold=threshold, device="meta")
        self.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False).to(linear.weight.device)
        self.bias = linear.bias
        self.init_8bit_state()
        self.requires_grad_(False)

    def init_8bit_state(self) -> None:
        """Takes the weight's scales over; a copy of it, as PEFT makes one for DoRA, has none and leaves them."""
        if self.weight.SCB is not None:
            super().init_8bit_state()
        self.state.CB, self.weight.CB = self.weight.data, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of ``x``."""
        out = super().forward(x)
        # Only a gradient of the weight would need the input, which bitsandbytes keeps outside of autograd's reach: it
        # would outlive the forward pass even where activations are recomputed.
        for name, released in (("A", None), ("tensors", (None, None, None))):
            if hasattr(out.grad_fn, name):
                setattr(out.grad_fn, name, released)
        return out

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear8bit:
        super()._apply(fn, recurse)
        self.state.CB = self.weight.data
        self.state.SCB = self.state.SCB.to(self.weight.device)  # stays float32 where the model's dtype changes
        return self
