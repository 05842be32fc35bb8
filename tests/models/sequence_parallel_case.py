"""Run as a rank of several: losses and gradients of shared rows, summed over the ranks.

    python -m tests.models.sequence_parallel_case BASE OUT

RANK and WORLD_SIZE say which process this is; alone it computes whole rows.
"""

import faulthandler
import os
import sys

import torch
import torch.distributed as dist

from tests.models.batches import LORA, WHOLE, build, make_batch, pack
from tests.models.test_preference import MPO, make_pairs
from xtuner_plugins.datasets import collate_pairs
from xtuner_plugins.models import PreferenceModel, VisionLanguageModel
from xtuner_plugins.models.losses import batch_weight

HANGS_AFTER = 120  # seconds, for a dozen steps of a tiny model
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


def compute(base: str, name: str, num_ranks: int) -> dict[str, torch.Tensor]:
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
        if num_ranks > 1:
            dist.all_reduce(value)
    return {**found, "sample_losses": outputs["sample_losses"].detach()}


def main(base: str, out: str) -> None:
    num_ranks = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    dist.init_process_group("gloo")
    results = {name: compute(base, name, num_ranks) for name in CASES}
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
