"""Pages after a resume; tests/engine/test_optimizers.py has the rest, on a GPU with true pages."""

import pytest
import torch

from xtuner_plugins.engine.bitsandbytes_adamw import MOMENTS, BitsAndBytesAdamW


@pytest.mark.parametrize("is_paged", [True, False])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_paged_optimizer_asks_for_pages_again(is_paged, monkeypatch):
    weight = torch.nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    saved = BitsAndBytesAdamW([weight], optim_bits=8, is_paged=is_paged)
    saved.step()
    other = BitsAndBytesAdamW([weight], optim_bits=8, is_paged=is_paged)
    asked = []

    def get_state_buffer(parameter, dtype):
        asked.append(torch.zeros(parameter.shape, dtype=dtype))
        return asked[-1]

    monkeypatch.setattr(other, "get_state_buffer", get_state_buffer)
    other.load_state_dict(saved.state_dict())
    assert len(asked) == (2 if is_paged else 0)
    for key in MOMENTS:
        assert torch.equal(other.state[weight][key], saved.state[weight][key]) and saved.state[weight][key].any()
        assert any(other.state[weight][key] is pages for pages in asked) is is_paged
