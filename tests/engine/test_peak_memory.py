import resource

import pytest
import torch

from xtuner_plugins.engine.peak_memory import peak_gib


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a process on a CPU")
def test_on_a_cpu_it_is_the_peak_of_the_process():
    assert peak_gib() == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, rel=0.01)
    held = torch.ones(40 << 18)  # 40 MiB
    assert peak_gib() >= 40 / 1024 and held.numel()
