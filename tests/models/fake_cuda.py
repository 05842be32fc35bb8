"""What a step on fake CUDA tensors (`benchmarks.fake_gpu`) would ask of a device that isn't there."""

import collections

import torch
from torch.utils._pytree import tree_leaves

from benchmarks.fake_gpu import LiveBytes


class Watch(LiveBytes):
    """Watches all operations inside it.

    Attributes:
        calls: operations by name, and by name and dtype.
        waits: copies between CPU and device, but those from pinned memory that nobody waits for.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.waits = collections.Counter(), []
        self._pinned: list[torch.Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name
        if function is torch.ops.aten._pin_memory.default:  # FakeTensorMode doesn't know it
            result = torch.empty(args[0].shape, dtype=args[0].dtype)
            self._pinned.append(result)
        else:
            result = super().__torch_dispatch__(function, types, args, kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.calls.update([name, *[(name, each.dtype) for each in tensors[:1]]])
        if name in ("aten::_to_copy", "aten::copy_") and len({each.device.type for each in tensors}) > 1:
            is_pinned = any(tensors[0] is each for each in self._pinned)
            self.waits += [] if is_pinned and kwargs.get("non_blocking") else [name]
        return result
