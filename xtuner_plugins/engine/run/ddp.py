"""DistributedDataParallel that also runs without a GPU."""

from __future__ import annotations

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class DeviceAwareDDP(MMDistributedDataParallel):
    """MMEngine's wrapper, with ``device_ids`` only for a module on a GPU.

    MMEngine always passes the local rank as device id, which PyTorch refuses for a module on the CPU.

    Args:
        module: The model, already on its device.
        device_ids: GPU ids from MMEngine; dropped for a CPU module.
        **kwargs: As `torch.nn.parallel.DistributedDataParallel`.
    """

    def __init__(self, module: torch.nn.Module, device_ids: list[int] | None = None, **kwargs):
        on_gpu = next(module.parameters()).is_cuda
        kwargs.setdefault("broadcast_buffers", False)
        super().__init__(module, device_ids=device_ids if on_gpu else None, **kwargs)
