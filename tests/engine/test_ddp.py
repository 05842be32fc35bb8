"""The wrapper around a module on a CPU, of which MMEngine's own is no choice."""

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel

from xtuner_plugins.engine.ddp import DeviceAwareDDP


@pytest.fixture
def process_group(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_module_on_the_cpu_gets_no_device_ids(process_group):
    module = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="device_ids"):
        MMDistributedDataParallel(module, device_ids=[0])
    wrapped = DeviceAwareDDP(module, device_ids=[0])
    assert wrapped.device_ids is None and wrapped.broadcast_buffers is False
    wrapped(torch.ones(1, 2)).sum().backward()
    assert torch.equal(module.bias.grad, torch.ones(2))


def test_settings_of_the_wrapper_reach_it(process_group):
    assert DeviceAwareDDP(torch.nn.Linear(2, 2), broadcast_buffers=True).broadcast_buffers is True
