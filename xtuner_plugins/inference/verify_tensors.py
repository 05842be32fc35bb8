"""Compares every tensor of an export with what base and checkpoint make of it, rows at a time.

The numbers are computed here by other lines than those that wrote the export: ``W + s B A`` in float64, DoRA's row
norms, single token rows. Tensors without an adapter must be equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..export.export import Job
from ..export.trained import TrainedPlan
from ..weights.lazy import LazyTensor
from ..weights.reading import CheckpointError, open_weights, read_json

_BLOCK = 2**20  # numbers
# The writer merges in float32: sums of a rank's products are off by a few 2^-24 of a row's largest number.
_FLOAT32_SUMS = 2.0**-20


def compare_tensors(job: Job, export: Path) -> dict[str, tuple[int, int]]:
    """Compares an export's weights with base and checkpoint.

    Args:
        job: what was to be written.
        export: the directory.

    Returns:
        By part (``vision_model``, ``mlp1``, ``language_model``): how many tensors differ from the base's, and of how
        many.

    Raises:
        CheckpointError: a tensor lacks, is unknown, or has another dtype, shape or numbers; a part that was trained is
            the base's.
    """
    plan, keys = job.plan, job.draft.format.keys(read_json(export / "config.json"))
    drafted, found = job.draft.tensors, open_weights(export)
    if wrong := sorted(drafted.keys() ^ found.keys()):
        raise CheckpointError(f"the weights lack or add {len(wrong)} tensors: {', '.join(wrong[:3])}")
    for name, tensor in found.items():
        if (tensor.dtype, tensor.shape) != (drafted[name].dtype, drafted[name].shape):
            raise CheckpointError(f"{name} is {tensor}, but {drafted[name].dtype} {list(drafted[name].shape)} was due")
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
    base, differs = plan.view.tensors[name], False
    source = plan.replaced.get(name, base)
    layer, _, leaf = name.rpartition(".")
    adapter, rows = plan.adapters.get(layer, {}), plan.token_rows.get(layer) if leaf == "weight" else None
    merge = Adapter(plan, layer) if adapter and leaf == "weight" else None
    for start, stop in _blocks(found):
        block = found.rows(start, stop).read() if found.shape else found.read()
        stop = min(stop, base.shape[0]) if base.shape else stop
        width = max(stop - start, 0) if base.shape else 1
        if found.shape and block[width:].any():  # rows beyond the base's, of a token that only a processor needs
            raise CheckpointError(f"{name}: rows from {stop} on belong to tokens that were not trained, but aren't 0")
        if not width:
            continue
        block = block[:width] if found.shape else block
        want = source.rows(start, stop).read() if found.shape else source.read()
        if merge:
            _check_merged(block, merge.rows(want, start, stop), f"{name}, rows {start} to {stop}")
        else:
            if rows:
                want = _with_rows(want, *rows, start)
            if not _equal(block, want.to(block.dtype)):
                raise CheckpointError(f"{name}, rows {start} to {stop}: other numbers than were trained")
        own = base.rows(start, stop).read() if found.shape else base.read()
        differs |= not _equal(block, own.to(block.dtype))
    return differs


def _blocks(tensor: LazyTensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about ``_BLOCK`` numbers."""
    if not tensor.shape:
        yield 0, 1
        return
    step = max(1, _BLOCK * tensor.shape[0] // max(tensor.numel, 1))
    for start in range(0, tensor.shape[0], step):
        yield start, min(start + step, tensor.shape[0])


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _with_rows(block: torch.Tensor, trained: LazyTensor, indices: list[int], start: int) -> torch.Tensor:
    """A block of a matrix with its trained rows."""
    block = block.to(torch.promote_types(block.dtype, trained.dtype))
    for n, index in enumerate(indices):
        if start <= index < start + len(block):
            block[index - start] = trained.rows(n, n + 1).read()[0]
    return block


def _check_merged(found: torch.Tensor, want: torch.Tensor, where: str) -> None:
    """Raises unless ``found`` is the float64 ``want`` within one rounding of its dtype."""
    info = torch.finfo(found.dtype)
    largest = want.abs().amax(-1, keepdim=True)
    allowed = want.abs() * (info.eps / 2) + largest * _FLOAT32_SUMS + info.smallest_normal * info.eps
    excess = (found.double() - want).abs() - allowed
    if not bool((excess <= 0).all()):  # also where it is NaN
        raise CheckpointError(f"{where}: not base + scale x B A within one rounding of {info.dtype}")


class Adapter:
    """What a layer's adapter makes of its weight, in float64.

    Args:
        plan: holds the adapter and its settings.
        layer: official name.
    """

    def __init__(self, plan: TrainedPlan, layer: str):
        part = layer.partition(".")[0]
        self._parts, config = plan.adapters[layer], plan.lora_configs[part]
        self._a = self._parts["lora_A.weight"].read().double().flatten(1)
        rank = len(self._a)
        self._scale = config.lora_alpha / (rank**0.5 if config.use_rslora else rank)

    def rows(self, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of the merged weight, from those of the base."""
        b = self._parts["lora_B.weight"].rows(start, stop).read().double() * self._scale
        merged = base.double() + (b.flatten(1) @ self._a).view(base.shape)
        if magnitude := self._parts.get("lora_magnitude_vector.weight"):
            norm = merged.norm(dim=1, keepdim=True)
            merged = merged / norm * magnitude.rows(start, stop).read().double().view(-1, 1)
        return merged
