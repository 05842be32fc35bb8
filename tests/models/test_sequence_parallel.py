"""Rows that several ranks share give the loss and the gradients of rows that one has."""

import faulthandler

import pytest
import torch
import torch.distributed as dist

from xtuner_plugins.datasets import collate_pairs
from xtuner_plugins.models import PreferenceModel, VisionLanguageModel
from xtuner_plugins.models.losses import batch_weight
from xtuner_plugins.models.sequence_parallel import check_heads, exchange

from .batches import LORA, WHOLE, build, make_batch, pack
from .test_preference import MPO, make_pairs

HANGS_AFTER = 120  # seconds, for a dozen steps of a tiny model
TOLERANCE = 1e-6  # sums of float32 in another order
STARTED = LORA | dict(init_lora_weights=False)
CASES = {  # settings, tiles of the samples, pairs
    "full": (WHOLE, (2, 0, 1, 3), False),
    "full, recomputed": (dict(WHOLE, gradient_checkpointing=True), (1, 4), False),
    "lora": (dict(llm_lora=STARTED), (2, 0, 1), False),
    "text alone": (WHOLE, (0, 0), False),
    "nothing supervised": (WHOLE, (1,), False),
    "one tile": (dict(freeze_llm=False), (1, 0), False),
    "pairs": (WHOLE, (2, 0, 1), True),
    "pairs, lora": (dict(llm_lora=STARTED), (3,), True),
}


def compute(base, name, num_ranks):
    """Loss, figures and gradients of a case by name, as the optimizer step sees them."""
    settings, tiles_of, is_pairs = CASES[name]
    kind, own = (PreferenceModel, dict(objectives=MPO)) if is_pairs else (VisionLanguageModel, {})
    settings = {"gradient_checkpointing": False, **settings, **own}
    model = build(base, kind, sequence_parallel=num_ranks, **settings).train()
    batch = collate_pairs(make_pairs(model, tiles_of)) if is_pairs else pack(make_batch(model, tiles_of))
    if name == "nothing supervised":
        batch["labels"][:] = -100
    elif not is_pairs:
        batch["loss_weights"] = torch.linspace(0.5, 2, len(tiles_of))
    mean_weight = torch.tensor(batch_weight(batch) / num_ranks)  # the ranks average their gradients
    outputs = model(**model.data_preprocessor(batch, training=True), mode="loss", mean_weight=mean_weight)
    outputs["loss"].backward()
    found = {key: value.detach().float() for key, value in outputs.items() if key != "sample_losses"}
    found |= {parameter: p.grad for parameter, p in model.named_parameters() if p.requires_grad}
    for key, value in found.items():
        assert value is not None, f"{key} has no gradient on this rank"  # DDP would wait for it
        dist.all_reduce(value)
    return {**found, "sample_losses": outputs["sample_losses"].detach()}


def run_rank(rank, num_ranks, base, out):
    """All cases, as one of so many ranks; the first writes what it finds."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=num_ranks)
    results = {name: compute(base, name, num_ranks) for name in CASES}
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


@pytest.mark.slow
def test_loss_and_gradients_equal_one_process(toy_base, tmp_path):
    """Whole and LoRA, recomputed or not, packs with images and without, pairs: on two ranks and on four.

    The toy LLM has four heads and two of keys, which four ranks repeat.
    """
    results, failures = {}, []
    for num_ranks in (1, 2, 4):
        out = tmp_path / f"{num_ranks}.pt"
        torch.multiprocessing.spawn(run_rank, (num_ranks, str(toy_base), str(out)), nprocs=num_ranks)
        results[num_ranks] = torch.load(out)
        for case, expected in results[1].items():
            assert results[num_ranks][case].keys() == expected.keys()
            for name, value in expected.items():
                # The loss is divided by the weight per rank, and so are the gradients.
                divisor = num_ranks if name == "loss" or name.startswith("model.") else 1
                found = results[num_ranks][case][name] / divisor
                found = found[: len(value)] if name == "sample_losses" else found  # behind them, what fills the row
                error = (found - value).abs().max() / max(1.0, float(value.abs().max()))
                if error > TOLERANCE:
                    failures.append(f"{case} on {num_ranks} ranks: {name} differs by {float(error):.1e}")
    assert not failures, "\n".join(failures)
    assert all(value.abs().max() > 0 for value in results[1]["full"].values())


def test_transposed_tensors_are_exchanged_as_they_read(tmp_path):
    """A result with the strides of a transposed tensor would hold the same numbers in another order."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parts = torch.arange(24.0).view(1, 4, 6).transpose(1, 2).requires_grad_()
        found = exchange(parts, dist.group.WORLD)
        (gradient,) = torch.autograd.grad((found.transpose(1, 2) * torch.arange(6.0)).sum(), parts)
        assert torch.equal(found, parts) and torch.equal(gradient, torch.arange(6.0)[:, None].expand(6, 4)[None])
    finally:
        dist.destroy_process_group()


def test_heads_are_shared_out_or_refused():
    for heads, kv_heads, num_ranks in ((28, 4, 4), (14, 2, 2), (32, 8, 8), (24, 6, 4), (16, None, 8)):
        check_heads({"num_attention_heads": heads, "num_key_value_heads": kv_heads}, num_ranks)
    for heads, kv_heads, num_ranks, remedy in ((14, 2, 4, "1 or 2"), (28, 4, 8, "1 or 2 or 4"), (25, 5, 2, "1")):
        with pytest.raises(ValueError, match=f"sequence_parallel={num_ranks}: .* set it to {remedy}$"):
            check_heads({"num_attention_heads": heads, "num_key_value_heads": kv_heads}, num_ranks)
