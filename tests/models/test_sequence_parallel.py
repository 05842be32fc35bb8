"""Rows that several ranks share give the loss and the gradients of rows that one has."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from xtuner_plugins.datasets import collate_pairs
from xtuner_plugins.models import PreferenceModel, VisionLanguageModel, sequence_parallel
from xtuner_plugins.models.losses import batch_weight
from xtuner_plugins.models.sequence_parallel import check_heads, check_rotations

from .batches import STARTED, WHOLE, build, make_batch, pack
from .test_preference import MPO, make_pairs

TOLERANCE = 1e-6  # sums of float32 in another order
CASES = {  # settings, tiles of the samples
    "full": (WHOLE, (2, 0, 1, 3)),
    "lora": (dict(llm_lora=STARTED), (2, 0, 1)),
    "text alone": (WHOLE, (0, 0)),
    "nothing supervised": (WHOLE, (1,)),
    "one tile": (dict(freeze_llm=False), (1, 0)),
    "pairs": (WHOLE, (2, 0, 1)),
    "pairs, lora": (dict(llm_lora=STARTED), (3,)),
}


class Threads(threading.local):
    """A group whose ranks are threads. What a rank gets keeps its graph, so one backward pass serves all."""

    def __init__(self, size, barrier, sent):
        self.size, self.barrier, self.sent = size, barrier, sent

    def exchange(self, found, parts):
        assert found.is_contiguous() and parts.is_contiguous()  # else the real one mixes numbers in silence
        self.sent[self.rank] = parts
        self.barrier.wait()
        found = torch.stack([self.sent[rank][self.rank] for rank in range(self.size)])
        self.barrier.wait()
        return found


def compute(model, batch, num_ranks):
    """Figures and gradients of a batch, summed over so many ranks, and what each rank says of the samples."""
    group = Threads(num_ranks, threading.Barrier(num_ranks, timeout=60), {})
    mean_weight, copies = torch.tensor(batch_weight(batch)), [copy.deepcopy(model) for _ in range(num_ranks)]

    def run_rank(rank):
        group.rank, preprocessor = rank, copies[rank].data_preprocessor
        preprocessor.group = group if num_ranks > 1 else None
        return copies[rank](**preprocessor(batch, training=True), mean_weight=mean_weight)

    with ThreadPoolExecutor(num_ranks) as ranks:
        outputs = list(ranks.map(run_rank, range(num_ranks)))
    sum(each["loss"] for each in outputs).backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # On each rank, because DDP would wait for a gradient that one doesn't have.
    found = {name: sum(each.get_parameter(name).grad for each in copies) for name in trained}
    losses = outputs[0].pop("sample_losses")
    return found | {key: sum(each[key] for each in outputs) for key in outputs[0]} | {"sample_losses": losses}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_one_process(name, toy_base, monkeypatch):
    """Whole and LoRA, packs with images and without, pairs: on two ranks and on four.

    The toy LLM has four heads and two of keys, which four ranks repeat. `tests/engine/run/test_strategy.py` trains in
    processes, and recomputes.
    """
    monkeypatch.setattr(sequence_parallel, "all_to_all_single", lambda *tensors, group: group.exchange(*tensors))
    monkeypatch.setattr(dist, "get_world_size", lambda group: group.size)
    monkeypatch.setattr(dist, "get_rank", lambda group: group.rank)
    settings, tiles_of = CASES[name]
    kind, own = (PreferenceModel, dict(objectives=MPO)) if "pairs" in name else (VisionLanguageModel, {})
    model = build(toy_base, kind, gradient_checkpointing=False, **settings, **own).train()
    batch = collate_pairs(make_pairs(model, tiles_of)) if "pairs" in name else pack(make_batch(model, tiles_of))
    if name == "nothing supervised":
        batch["labels"][:] = -100
    elif "pairs" not in name:
        batch["loss_weights"] = torch.linspace(0.5, 2, len(tiles_of))
    expected = compute(model, batch, 1)
    assert name != "full" or all(value.abs().max() > 0 for value in expected.values())
    for num_ranks in (2, 4):
        found = compute(model, batch, num_ranks)
        found["sample_losses"] = found["sample_losses"][: len(expected["sample_losses"])]  # without what fills the row
        for key, value in expected.items():
            assert (found[key] - value).abs().max() <= TOLERANCE * value.abs().max().clamp(min=1), (num_ranks, key)


def test_transposed_tensors_are_exchanged_as_they_read(tmp_path):
    """A result with the strides of a transposed tensor would hold the same numbers in another order."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parts = torch.arange(24.0).view(1, 4, 6).transpose(1, 2).requires_grad_()
        found = sequence_parallel.exchange(parts, dist.group.WORLD)
        (gradient,) = torch.autograd.grad((found.transpose(1, 2) * torch.arange(6.0)).sum(), parts)
        assert torch.equal(found, parts) and torch.equal(gradient, torch.arange(6.0)[:, None].expand(6, 4)[None])
    finally:
        dist.destroy_process_group()


def test_what_ranks_can_not_share_is_refused(monkeypatch):
    for heads, kv_heads, num_ranks, remedy in (
        *((28, 4, 4, ""), (14, 2, 2, ""), (24, 6, 4, ""), (16, None, 8, "")),
        *((14, 2, 4, "1 or 2"), (28, 4, 8, "1 or 2 or 4"), (25, 5, 2, "1")),
    ):
        with pytest.raises(ValueError, match=f"={num_ranks}: .* set it to {remedy}$") if remedy else nullcontext():
            check_heads({"num_attention_heads": heads, "num_key_value_heads": kv_heads}, num_ranks)
    monkeypatch.setattr(sequence_parallel, "size_of", lambda group: group)
    for group, longest, kind in ((2, 9, "dynamic"), (2, 8, "dynamic"), (2, 9, "linear"), (None, 9, "dynamic")):
        llm = SimpleNamespace(rope_scaling={"rope_type": kind}, max_position_embeddings=8)
        is_right = (group, longest, kind) != (2, 9, "dynamic")
        with nullcontext() if is_right else pytest.raises(ValueError, match="=2: a sample has 9 .* max_length to 8,"):
            check_rotations(longest, llm, group)
