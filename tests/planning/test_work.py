"""Operations against PyTorch's own counter and the time that follows from them."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_model import config_of, meta_model
from xtuner_plugins.datasets.base import work_rates
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.plan import job_of
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.planning.work import work_of


def counted(call):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


NO_MASK = {"full_attention": None}  # transformers would look at positions, which `meta` hasn't


def job_for(base):
    return job_of({"model": {"base": "x"}}, shape_of(base.config), (Batch(1, 1, 1),))


def test_forward_passes_are_what_pytorch_counts():
    base = BASES["InternVL2_5-1B"]
    model, work = meta_model(base).eval(), work_of(job_for(base), Batch(512, 2, 64))
    found = counted(lambda: model.vision_model.patch_features(torch.empty(2, 3, 448, 448)))
    assert work.encoder == pytest.approx(found, rel=0.005)  # the convolution over pixels isn't planned: 0.2 %
    llm = model.language_model
    # The real rotation asks the device for autocast, which `meta` hasn't.
    with mock.patch.object(llm.model.rotary_emb, "forward", lambda *_: (torch.empty(1, 512, 64),) * 2):
        found = counted(
            lambda: llm.model(inputs_embeds=torch.empty(1, 512, 896), attention_mask=NO_MASK, use_cache=False)
        )
    found += counted(lambda: llm.lm_head(torch.empty(64, 896)))
    # PyTorch counts attention as if nothing were masked: once more what is counted here.
    assert work.llm + 2 * 512**2 * 896 * 24 == pytest.approx(found, rel=0.001)


def test_ranks_are_balanced_by_the_operations_that_are_planned():
    """The three rates of the sampler for every released base; router and the last block of CLIP are not counted."""
    for name, base in BASES.items():
        job, (square, token, tile) = job_for(base), work_rates(config_of(base))
        for tokens in (512, 32_768):
            work = work_of(job, Batch(tokens, 0, 0))
            assert square * tokens**2 + token * tokens == pytest.approx(work.llm, rel=0.01), name
        assert tile == pytest.approx(work_of(job, Batch(0, 1, 0)).encoder, rel=0.06), name


def test_what_runs_beside_the_forward_pass(warm_up):
    """Frozen weights have no gradient of their own; the head of pairs runs twice, the reference reads each pair."""

    def work(**changes):
        return work_of(replace(warm_up, **changes), Batch(10, 1, 4))

    frozen, whole, last = work(), work(whole=frozenset({"projector", "llm"})), work(last_layers=1)
    head = 2 * 4 * 16 * 100
    assert frozen.backward == frozen.llm + 2 * frozen.projector and frozen.recomputed == frozen.llm - head
    assert whole.backward == 2 * whole.llm + 2 * whole.projector
    assert work(train_head=True).backward == frozen.backward + head and work(recompute=False).recomputed == 0
    assert last.backward == frozen.backward + 2 * last.encoder / 2
    assert last.recomputed - frozen.recomputed == last.encoder / 2
    precomputed, live = work(pairs=True), work(pairs=True, reference=True)
    assert precomputed.total - frozen.total == head and precomputed.reference == 0
    assert live.reference == live.llm + live.projector == live.total - precomputed.total
    assert work(pairs=True, reference=True, whole=frozenset({"visual_encoder"})).reference == live.forward
