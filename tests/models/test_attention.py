"""Attention over a row of several samples against masks of the whole row, and what kernels get."""

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.fake_gpu import fake_gpu
from xtuner_plugins.families import LLM_FAMILIES
from xtuner_plugins.models import attention as attention_module
from xtuner_plugins.models.attention import SEGMENTS, Segments, branch_off, no_mask, segment_attention

BOUNDS = (0, 5, 6, 17)


def make_states(kv_heads=2):
    torch.manual_seed(0)
    return [torch.randn(1, heads, BOUNDS[-1], 8, requires_grad=True) for heads in (6, kv_heads, kv_heads)]


def attend(*states, follows=(), window=None):
    branches = branch_off(BOUNDS, follows) if follows else None
    segments = Segments(BOUNDS, torch.tensor(BOUNDS, dtype=torch.int32, device=states[0].device), branches)
    options = dict(scaling=0.3, segments=segments, sliding_window=window)
    output, weights = segment_attention(nn.Module(), *states, None, **options)
    assert weights is None
    return output


def masked(query, key, value, window=None, follows=()):
    """Attention with a mask of the whole row and repeated keys; ``follows`` as of `branch_off`."""
    sample = torch.bucketize(torch.arange(BOUNDS[-1]), torch.tensor(BOUNDS[1:]), right=True)
    distance = torch.arange(BOUNDS[-1])[:, None] - torch.arange(BOUNDS[-1])
    mask = (sample[:, None] == sample[None]) & (distance >= 0)
    for own, other in enumerate(follows):
        pair = (sample[:, None] == own) & (sample[None] == other)  # none where it is -1
        between = BOUNDS[own] - BOUNDS[other + 1]  # the other stands right before it, whatever stands there
        mask, distance = mask | pair, torch.where(pair, distance - between, distance)
    if window is not None:
        mask &= distance < window
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)


def test_equals_a_mask_of_the_whole_row(monkeypatch):
    """With windows and grouped heads, and after a prompt; keys repeated on CUDA devices without flash attention alone.

    Nothing that grows with the square of the row is passed on.
    """
    original, calls = F.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, **options):
        calls.append((key.shape[1], len(attn_mask) if attn_mask is not None else 0))
        return original(query, key, value, attn_mask=attn_mask, **options)

    for follows, window, kv_heads, as_on_cuda in itertools.product(
        ((), (-1, 0, 0)), (None, 1, 3, 11, 100), (1, 2, 6), (False, True)
    ):
        case = (follows, window, kv_heads, as_on_cuda)
        ours, theirs = make_states(kv_heads), make_states(kv_heads)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", as_on_cuda)
            patch.setattr(F, "scaled_dot_product_attention", watched)
            output = attend(*ours, follows=follows, window=window)
        assert {heads for heads, _ in calls} == {6 if as_on_cuda else kv_heads}, case
        assert max(rows for _, rows in calls) <= 11 and (window or follows or not any(rows for _, rows in calls)), case
        calls.clear()
        expected = masked(*theirs, window, follows)
        torch.testing.assert_close(output, expected, msg=str(case))
        found = torch.autograd.grad((output * torch.arange(8.0)).sum(), ours)
        expected = torch.autograd.grad((expected * torch.arange(8.0)).sum(), theirs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=str(case))


def test_flash_gets_boundaries_and_a_causal_window(monkeypatch):
    """What the kernel of a CUDA device is called with; of a segment after a prompt the prompt's positions, too."""
    calls = []

    def kernel(query, key, value, *borders, **options):
        calls.append((len(query), len(key), [b if isinstance(b, int) else b.tolist() for b in borders], options))
        return torch.zeros_like(query)

    monkeypatch.setattr(attention_module, "varlen_attn", kernel)
    monkeypatch.setattr(attention_module, "_flash_runs", lambda query, dropout: True)
    for window, follows, keys, expected in (
        (None, (), [0, 5, 6, 17], (-1, 0)),
        (3, (), [0, 5, 6, 17], (2, 0)),
        (11, (), [0, 5, 6, 17], (-1, 0)),
        (11, (-1, 0, 0), [0, 5, 11, 27], (10, 0)),
    ):
        assert attend(*make_states(), follows=follows, window=window).shape == (1, 17, 6, 8)
        options = {"scale": 0.3, "window_size": expected, **attention_module._GROUPED}
        assert calls.pop() == (17, keys[-1], [list(BOUNDS), keys, 11, 16 if follows else 11], options)
    assert branch_off((0, 2, 3, 5, 6), (-1, 0, 0, -1)).key_positions.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5]
    for follows in ((0, -1, -1), (-1, 2, -1), (-1, 0, 1)):
        with pytest.raises(ValueError, match="an earlier one that follows no other"):
            branch_off(BOUNDS, follows)


def test_flash_needs_ampere_half_precision_and_no_dropout():
    half, heads = torch.float16, (100, 128, 256, 264)
    for capability, dtype, dropout, dim in itertools.product(
        ((7, 5), (8, 0), (12, 0)), (half, torch.float32), (0.0, 0.1), heads
    ):
        with fake_gpu(), mock.patch("torch.cuda.get_device_capability", return_value=capability):
            query = torch.empty(1, 2, 3, dim, dtype=dtype, device="cuda")
            expected = capability >= (8, 0) and dtype == half and not dropout and dim in (128, 256)
            assert attention_module._flash_runs(query, dropout) == expected, (capability, dtype, dropout, dim)


@pytest.mark.gpu
def test_flash_equals_segment_by_segment():
    states = [tensor.detach().to("cuda", torch.bfloat16) for tensor in make_states()]
    assert attention_module._flash_runs(states[0], 0.0)
    for window in (None, 3):
        expected = masked(*[tensor.float().cpu() for tensor in states], window)
        torch.testing.assert_close(attend(*states, window=window).float().cpu(), expected, atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_every_family_takes_segments():
    """Each sample of a row gives the hidden states that it gives alone under transformers' own attention."""
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, sliding_window=4, use_sliding_window=True, max_window_layers=1, pad_token_id=0)
    experts = dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=8)
    for name in LLM_FAMILIES:
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, vocab_size=90, **shape, **(experts if name == "qwen3_moe" else {}))
        llm = AutoModelForCausalLM.from_config(config).eval()
        decoder = llm.get_decoder()
        samples = [torch.randint(0, 90, (1, length)) for length in (5, 1, 11)]
        alone = torch.cat([decoder(ids).last_hidden_state for ids in samples], 1)
        llm.set_attn_implementation(SEGMENTS)
        again = torch.cat([decoder(ids).last_hidden_state for ids in samples], 1)
        torch.testing.assert_close(again, alone, msg=name)  # without segments nothing has changed
        row, positions = torch.cat(samples, 1), torch.cat([torch.arange(ids.shape[1]) for ids in samples])[None]
        inputs = dict(position_ids=positions, attention_mask=no_mask(row.device), use_cache=False)
        for bounds, is_right in ((BOUNDS, True), ((0, 17), False)):
            segments = Segments(bounds, torch.tensor(bounds, dtype=torch.int32))
            together = decoder(row, segments=segments, **inputs).last_hidden_state
            assert ((together - alone).abs().max() < 1e-5) == is_right, name
