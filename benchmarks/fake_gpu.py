"""Fake tensors on a GPU that isn't there: how many bytes live, forward and backward.

`FakeTensorMode` runs the Python of real classes with shapes, dtypes and devices of every operation, but no kernel.
PyTorch's engine has no thread for a device that it doesn't find, so `run_backward` walks the graph itself.
"""

from __future__ import annotations

import heapq
import itertools
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all storages made inside it, on one kind of device, until they are freed.

    Attributes:
        now, peak: bytes; `peak` since the last `restart`.
    """

    def __init__(self, device: str = "cuda"):
        super().__init__()
        self.now = self.peak = 0
        self._device, self._sizes = device, {}

    def add(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.device.type == self._device and key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def restart(self) -> int:
        """The peak so far; the next one counts from now."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # FakeTensorMode doesn't know the product that is added in place.
        result = kwargs["out"] if function is torch.ops.aten.addmm.dtype_out else function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def run_backward(loss: list[torch.Tensor], drops_gradients: bool = False) -> None:
    """Walks the graph of a loss as PyTorch's engine does: the latest operation first, nothing kept behind it.

    Args:
        loss: taken out of the list, so that nobody else holds the graph.
        drops_gradients: of parameters, at once.
    """
    root, gradient = loss[0].grad_fn, torch.ones_like(loss.pop())
    waiting, order = _dependencies(root), itertools.count()
    inputs, ready, owners = {root: {0: gradient}}, [(0, 0, root)], {}
    del root, gradient
    with torch.no_grad():
        while ready:
            node = heapq.heappop(ready)[2]
            waiting.pop(node, None)
            if hasattr(node, "variable"):
                _accumulate(node.variable, inputs.pop(node)[0], drops_gradients)
                continue
            edges, results = node.next_functions, list(_call(node, inputs.pop(node, {})))
            for following, _ in edges:
                if isinstance(following, BackwardCFunction):  # its Python object doesn't keep it alive
                    owners.setdefault(following, []).append(node)
            owners.pop(node, None)
            del node
            for index, (following, number) in enumerate(edges):
                result, results[index] = results[index], None
                if following is None:
                    continue
                if result is not None:
                    _hand_on(inputs.setdefault(following, {}), number, result, following._input_metadata[number])
                del result
                waiting[following] -= 1
                if not waiting[following]:
                    heapq.heappush(ready, (-following._sequence_nr(), next(order), following))
            del edges, results, following


def _dependencies(root: Any) -> Counter:
    counts, seen, stack = Counter(), {root}, [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                counts[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    return counts


def _call(node: Any, inputs: dict[int, torch.Tensor]) -> tuple:
    wanted = node._input_metadata
    gradients = [inputs.pop(index, None) for index in range(len(wanted))]
    if all(each is None for each in gradients):
        return (None,) * len(node.next_functions)
    if isinstance(node, BackwardCFunction):
        found = node.apply(
            *(
                torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device) if each is None else each
                for each, meta in zip(gradients, wanted, strict=True)
            )
        )
    else:
        found = node(*gradients)
    return found if isinstance(found, tuple) else (found,)


def _hand_on(waiting: dict[int, torch.Tensor], number: int, gradient: torch.Tensor, wanted: Any) -> None:
    if gradient.shape != tuple(wanted.shape):
        gradient = gradient.sum_to_size(wanted.shape)
    gradient = gradient.to(wanted.dtype)
    waiting[number] = waiting[number] + gradient if number in waiting else gradient


def _accumulate(parameter: torch.Tensor, gradient: torch.Tensor, drops: bool) -> None:
    if drops:
        return
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors are fake, and there is a CUDA device, with attention and dropout as its kernels keep them."""

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
        states = (each.to(dtype) for each in (query, key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention(*states, dropout_p, is_causal, False, scale=scale)[0]

    def dropout(values, p=0.5, training=True, inplace=False):
        return torch.native_dropout(values, p, True)[0] if training and p else values

    with ExitStack() as stack:
        stack.enter_context(
            FakeTensorMode(allow_non_fake_inputs=True)
        )  # first: it makes up for a device without driver
        for name, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.get_device_capability": lambda device=None: (9, 0),
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch._subclasses.fake_tensor.init_gpu_context": lambda device: None,
            "torch.nn.functional.scaled_dot_product_attention": attend,
            "torch.nn.functional.dropout": dropout,
            "torch._C._current_graph_task_id": lambda: 1,  # recomputation asks for it
            "torch.utils.checkpoint.get_device_states": lambda *args: ([], []),
            "torch.utils.checkpoint.set_device_states": lambda *args, **kwargs: None,
        }.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
