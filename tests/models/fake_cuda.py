"""Fake CUDA tensors, and what a step would ask of a device that isn't there.

`FakeTensorMode` runs the Python of the real classes with shapes, strides, dtypes and devices of every operation, but no
kernel; it raises where a value decides. The backward pass can't run: PyTorch's engine has no thread for a device that
it doesn't find.
"""

import collections
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


class Watch(TorchDispatchMode):
    """What a forward pass asks of the device.

    Attributes:
        calls: operations by name, and by name and dtype.
        waits: copies between CPU and device, but those from pinned memory that nobody waits for.
        unaligned: matrix products in half precision with rows that don't begin at multiples of 16 bytes.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.waits, self.unaligned = collections.Counter(), [], []
        self._pinned: list[torch.Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name
        if function is torch.ops.aten.addmm.dtype_out:  # FakeTensorMode knows neither this nor pinned memory
            result = kwargs["out"]
        elif function is torch.ops.aten._pin_memory.default:
            result = torch.empty(args[0].shape, dtype=args[0].dtype)
            self._pinned.append(result)
        else:
            result = function(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.calls.update([name, *[(name, each.dtype) for each in tensors[:1]]])
        if name in ("aten::_to_copy", "aten::copy_") and len({each.device.type for each in tensors}) > 1:
            is_pinned = any(tensors[0] is each for each in self._pinned)
            self.waits += [] if is_pinned and kwargs.get("non_blocking") else [name]
        if name in PRODUCTS and not all(map(_is_aligned, tensors)):
            self.unaligned.append((name, [(tuple(each.shape), each.stride()) for each in tensors]))
        return result


def _is_aligned(matrix: torch.Tensor) -> bool:
    if matrix.dtype == torch.float32 or matrix.dim() < 2:  # a bias has one dimension
        return True
    steps = sorted(matrix.stride()[-2:])
    return steps[0] == 1 and steps[1] % 8 == 0 and matrix.storage_offset() % 8 == 0


@contextmanager
def fake_cuda(capability: tuple[int, int]):
    """Tensors are fake, and there is a CUDA device of this compute capability."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())  # first: it makes up for what C++ asks a device where there is none
        for name, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.get_device_capability": lambda device=None: capability,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch._subclasses.fake_tensor.init_gpu_context": lambda device: None,
        }.items():
            stack.enter_context(mock.patch(name, value))
        yield
