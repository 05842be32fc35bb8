"""Operations against PyTorch's own counter and the time that follows from them."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_model import meta_model
from xtuner_plugins.datasets.base import work_rates
from xtuner_plugins.hub import InternVLChatConfig
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.plan import job_of
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.planning.work import work_of


def counted(module, *inputs, **options):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*(torch.empty(*size) for size in inputs), **options)
    return counter.get_total_flops()


def _angles():
    """Cosines and sines of 512 positions: the real module asks the device for autocast, which `meta` hasn't."""
    return torch.empty(1, 512, 64), torch.empty(1, 512, 64)


def test_forward_passes_are_what_pytorch_counts():
    base = BASES["InternVL2_5-1B"]
    model = meta_model(base).eval()
    work = work_of(job_of({"model": {"base": "x"}}, shape_of(base.config), (Batch(1, 1, 1),)), Batch(512, 2, 64))
    # The counter also counts the convolution over pixels: 0.2 % of the encoder.
    assert work.encoder == pytest.approx(counted(model.vision_model.patch_features, (2, 3, 448, 448)), rel=0.005)
    # Norm and biases count as weights here: 0.2 % of the projector.
    assert work.projector == pytest.approx(counted(model.mlp1, (2, 256, 4096)), rel=0.005)
    rotary = mock.patch.object(model.language_model.model.rotary_emb, "forward", lambda x, ids: _angles())
    with rotary, torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.language_model.model(inputs_embeds=torch.empty(1, 512, 896), use_cache=False)
        model.language_model.lm_head(torch.empty(64, 896))
    # PyTorch counts attention as if nothing were masked: once more what is counted here.
    assert work.llm + work.attention == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_ranks_are_balanced_by_the_operations_that_are_planned():
    """The three rates of the sampler for every released base; router and the last block of CLIP are not counted."""
    for name, base in BASES.items():
        job = job_of({"model": {"base": "x"}}, shape_of(base.config), (Batch(1, 1, 1),))
        square, token, tile = work_rates(InternVLChatConfig(**base.config))
        for tokens in (512, 32_768):
            work = work_of(job, Batch(tokens, 0, 0))
            assert square * tokens**2 + token * tokens == pytest.approx(work.llm, rel=0.01), name
        assert tile == pytest.approx(work_of(job, Batch(0, 1, 0)).encoder, rel=0.06), name


def test_what_runs_beside_the_forward_pass(warm_up):
    """Frozen weights have no gradient of their own; the head of pairs runs twice, the reference reads each pair."""
    sample, pairs = Batch(10, 1, 4), replace(warm_up, pairs=True)
    frozen, head = work_of(warm_up, sample), 2 * 4 * 16 * 100
    whole = work_of(replace(warm_up, whole=frozenset({"projector", "llm"})), sample)
    assert frozen.backward == frozen.llm + 2 * frozen.projector
    assert whole.backward == 2 * whole.llm + 2 * whole.projector
    assert work_of(replace(warm_up, train_head=True), sample).backward == frozen.backward + head
    last = work_of(replace(warm_up, last_layers=1), sample)
    assert last.backward == frozen.backward + 2 * last.encoder / 2
    assert last.recomputed - frozen.recomputed == last.encoder / 2
    assert work_of(replace(warm_up, recompute=False), sample).recomputed == 0
    assert frozen.recomputed == frozen.llm - head
    precomputed, live = work_of(pairs, sample), work_of(replace(pairs, reference=True), sample)
    assert precomputed.total - frozen.total == head and precomputed.reference == 0
    assert live.reference == live.llm + live.projector == live.total - precomputed.total
    encoder = replace(pairs, whole=frozenset({"visual_encoder"}), reference=True)
    assert work_of(encoder, sample).reference == live.forward
