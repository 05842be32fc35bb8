"""Operations against PyTorch's own counter, and the time that follows from them."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.plan import job_of, model_of_base
from xtuner_plugins.planning.published import BASES, meta_model
from xtuner_plugins.planning.work import seconds, work_of


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
    job = job_of({"model": {"base": "x"}}, model_of_base(base), (Batch(1, 1, 1),))
    work = work_of(job, Batch(512, 2, 64))
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


def test_frozen_weights_have_no_gradient_of_their_own(warm_up):
    sample = Batch(10, 1, 4)
    frozen = work_of(warm_up, sample)
    whole = work_of(replace(warm_up, whole=frozenset({"projector", "llm"})), sample)
    assert frozen.backward == frozen.llm + 2 * frozen.projector
    assert whole.backward == 2 * whole.llm + 2 * whole.projector
    assert work_of(replace(warm_up, recompute=False), sample).recomputed == 0 < frozen.recomputed < frozen.llm
    parts = (frozen.encoder, frozen.projector, frozen.llm, frozen.backward, frozen.recomputed)
    assert frozen.total == sum(parts)


def test_the_reference_reads_each_pair(warm_up):
    """A forward pass: of a frozen encoder the output is there already. The head of pairs runs once more."""
    sample, pairs = Batch(10, 1, 4), replace(warm_up, pairs=True)
    before, precomputed = work_of(warm_up, sample), work_of(pairs, sample)
    assert precomputed.total - before.total == 2 * 4 * 16 * 100 and precomputed.reference == 0
    live = work_of(replace(pairs, reference=True), sample)
    assert live.reference == live.llm + live.projector == live.total - precomputed.total
    encoder = replace(pairs, whole=frozenset({"visual_encoder"}))
    assert work_of(replace(encoder, reference=True), sample).reference == live.forward


def test_time():
    assert seconds(8e15, gpus=4, teraflops=100, utilization=0.5) == 40
