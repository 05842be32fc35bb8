"""Compares every tensor of an export with what base and checkpoint make of it, rows at a time.

Merged numbers are computed here by other lines than those that wrote the export: ``W + s B A`` in float64 and DoRA's
row norms. Tensors without an adapter must be equal bit by bit.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..export.export import Job
from ..export.trained import TrainedPlan
from ..weights.lazy import LazyTensor
from ..weights.model_view import keys_of
from ..weights.reading import CheckpointError, open_weights, read_json

# The writer merges in float32: sums of a rank's products are off by a few 2^-24 of a row's largest number.
_FLOAT32_SUMS = 2.0**-20


def compare_tensors(job: Job, export: Path) -> dict[str, tuple[int, int]]:
    """Compares an export's weights with base and checkpoint.

    Returns:
        By part (``vision_model``, ``mlp1``, ``language_model``): how many tensors differ from the base's, and of how
        many.

    Raises:
        CheckpointError: a tensor lacks, is unknown, or has another dtype, shape or numbers; a part that was trained is
            the base's.
    """
    plan, keys = job.plan, keys_of(job.draft.format, read_json(export / "config.json"))
    drafted, found = job.draft.tensors, open_weights(export)
    if wrong := sorted(drafted.keys() ^ found.keys()):
        raise CheckpointError(f"the weights lack or add {len(wrong)} tensors: {', '.join(wrong[:3])}")
    for name, tensor in found.items():
        if (tensor.dtype, tensor.shape) != (drafted[name].dtype, drafted[name].shape):
            raise CheckpointError(f"{name} is {tensor}, but {drafted[name]} was due")
    changed: dict[str, list[bool]] = {}
    for name, tensor in (keys.to_ours(found) if keys else found).items():
        changed.setdefault(name.partition(".")[0], []).append(_differs_from_base(plan, name, tensor))
    trained = {name.partition(".")[0] for name in (*plan.replaced, *plan.adapters, *plan.token_rows)}
    if same := sorted(part for part in trained if not any(changed[part])):
        raise CheckpointError(
            f"no tensor of {', '.join(same)} differs from the base, though it was trained: the learning rate was 0, or "
            "the changes are too small for the export's dtype (--dtype float32 keeps them)"
        )
    return {part: (sum(each), len(each)) for part, each in changed.items()}


def _differs_from_base(plan: TrainedPlan, name: str, found: LazyTensor) -> bool:
    """Compares one tensor; returns whether it differs from the base's. Errors as for ``compare_tensors``."""
    base, (layer, _, leaf) = plan.view.tensors[name], name.rpartition(".")
    longer, differs = found.shape > base.shape, False  # by rows of tokens that only a processor needs
    if longer and found.read(base.shape[0]).any():
        raise CheckpointError(
            f"{name}: rows from {base.shape[0]} on belong to tokens that were not trained, but aren't 0"
        )
    for start, stop in (base if longer else found).spans():
        block, own = found.read(start, stop), base.read(start, stop)
        want, where = plan.replaced.get(name, base).read(start, stop), f"{name}, rows {start} to {stop}"
        if leaf == "weight" and layer in plan.adapters:
            _check_merged(block, _merged(plan, layer, want, start, stop), where)
        else:
            if leaf == "weight" and layer in plan.token_rows:
                want = _with_rows(want, *plan.token_rows[layer], start)
            if not _equal(block, want):
                raise CheckpointError(f"{where}: other numbers than were trained")
        differs |= not _equal(block, own)
    return differs


def _equal(block: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether a block is another one, bit by bit, cast to its dtype."""
    return torch.equal(block.flatten().view(torch.uint8), want.to(block.dtype).flatten().view(torch.uint8))


def _with_rows(block: torch.Tensor, trained: LazyTensor, indices: list[int], start: int) -> torch.Tensor:
    """A block of a matrix, from row ``start`` on, with its trained rows."""
    block = block.to(torch.promote_types(block.dtype, trained.dtype))
    for row, index in zip(trained.read(), indices, strict=True):
        if start <= index < start + len(block):
            block[index - start] = row
    return block


def _merged(plan: TrainedPlan, layer: str, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows ``[start, stop)`` of a layer's merged weight in float64, from those of the base."""
    parts, scale = plan.adapters[layer], plan.lora_configs[layer.partition(".")[0]].scale
    b, a = parts["lora_B.weight"].read(start, stop).double(), parts["lora_A.weight"].read().double()
    merged = base.double() + scale * b @ a
    if magnitude := parts.get("lora_magnitude_vector.weight"):
        merged *= magnitude.read(start, stop).double()[:, None] / merged.norm(dim=1, keepdim=True)
    return merged


def _check_merged(found: torch.Tensor, want: torch.Tensor, where: str) -> None:
    """Raises unless ``found`` is the float64 ``want`` within one rounding of its dtype."""
    info = torch.finfo(found.dtype)
    largest = want.abs().amax(-1, keepdim=True)
    allowed = want.abs() * (info.eps / 2) + largest * _FLOAT32_SUMS + info.smallest_normal * info.eps
    if not bool(((found.double() - want).abs() <= allowed).all()):  # also where it is NaN
        raise CheckpointError(f"{where}: not base + scale x B A within one rounding of {info.dtype}")
