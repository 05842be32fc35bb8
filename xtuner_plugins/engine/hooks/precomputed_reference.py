"""Computes the reference's log probabilities once, before the first step, on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...checkpoints.io.reader import weight_files
from ...datasets.bad_samples import FILLER
from ...datasets.cache import content_hash
from ...datasets.errors import DataError, SettingError
from ...datasets.handover import bind_worker
from ...datasets.plan.lengths import DROPPED
from ...datasets.preference import FILLER_TOKENS, PreferenceDataset, collate_pairs, filler_pair
from ...datasets.reference import (
    CHUNK,
    ReferenceLogProbs,
    is_whole,
    join_chunks,
    missing_chunks,
    place_of,
    prepare,
    reference_key,
    rows_of,
    save_chunk,
)
from ...hub.constants import IGNORE_INDEX
from ..loops import TrainingStopped
from ..steps import unwrap


@HOOKS.register_module()
class PrecomputedReferenceHook(Hook):
    """Gives the batches of a `PreferenceModel` with ``precomputed_reference`` what the reference says.

    The log probabilities are in ``folder`` under a hash of weights, data and preprocessing. What is missing there is
    computed before the first step, by all ranks and under any strategy: the model then is the reference. A start that
    was stopped goes on; a later run with the same base and data computes nothing; of two at the same time both compute
    all of it. The folder is on a disk that all nodes share. Samples whose images can't be read are left out here; in
    training they are counted as ever.

    Args:
        folder: For all runs.

    Raises:
        TrainingStopped: The log probabilities aren't there, and the model isn't the base: the run resumes, or begins
            with `load_from`.
        SettingError: The folder can't be written, or the dataset has `augment`.
    """

    priority = "VERY_HIGH"

    def __init__(self, folder: str = "work_dirs/reference"):
        self._folder = folder

    def before_train(self, runner) -> None:
        """Computes what is missing, before the loop's workers start."""
        network, dataset = unwrap(runner.model), runner.train_dataloader.dataset
        if not getattr(network, "precomputed_reference", False):
            return
        if not isinstance(dataset, PreferenceDataset):
            raise ValueError(f"precomputed_reference needs a PreferenceDataset, not {type(dataset).__name__}")
        if changed := [source.name for source in dataset.sources if source.augment]:
            raise SettingError(
                "precompute_reference",
                f"precompute_reference with augment ({', '.join(changed)}): the reference would see other images",
                "leave one of them out",
            )
        rows = rows_of(dataset, np.flatnonzero(dataset.layout()[2] < DROPPED))
        files = [Path(network.base, "config.json"), *weight_files(network.base)]
        hashes = [content_hash(path, dataset.cache_dir) for path in files]
        held = repr((network.dtype, *map(runner.cfg.model.get, ("llm_quantization", "visual_encoder_quantization"))))
        folder = Path(self._folder, reference_key(dataset, rows, hashes, held))
        missing = _missing(folder, len(rows))
        if missing is not None:
            if not network.reference_is_complete:
                _check_is_reference(runner, folder)
            _compute(network, dataset, rows, folder, runner.cfg.train_dataloader, missing)
        dataset.reference = ReferenceLogProbs(folder, dataset)
        print_log(f"log probabilities of the reference for {len(rows):,} pairs: {folder}", "current")


def _missing(folder: Path, num_pairs: int) -> list[int] | None:
    """The chunks to compute, as rank 0 sees them: another run may write there meanwhile; None where all is there."""
    found = [None]
    if is_main_process() and not is_whole(folder):
        prepare(folder)
        found = [missing_chunks(folder, -(-num_pairs // CHUNK))]
    broadcast_object_list(found)
    return found[0]


def _check_is_reference(runner, folder: Path) -> None:
    """Raises `TrainingStopped` where the model isn't the base that the config names (any more)."""
    if runner.iter > 0:
        raise TrainingStopped(
            f"the run resumes at step {runner.iter} and {folder.absolute()} with the reference's log probabilities "
            "isn't there: it can only be computed before the first step. Restore the folder, or begin a new run"
        )
    if runner.cfg.get("load_from"):
        raise TrainingStopped(
            f"the reference is the base, but the run begins with other weights (load_from={runner.cfg.load_from!r}), "
            "so its log probabilities can't be computed. Start once without load_from and with max_steps=1, which "
            "computes them, or export the checkpoint and name it as base"
        )


class _Records(Dataset):
    """Records by their number over all files."""

    def __init__(self, dataset: PreferenceDataset, rows: np.ndarray):
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        bind_worker()
        try:
            return self._dataset.load(*place_of(self._dataset, int(self._rows[index])))
        except DataError:  # it comes into the ledger when training takes it
            return filler_pair(self._dataset.tile_size)


def _collate(samples: Sequence[dict]) -> dict:
    """The batch, with the supervised tokens of each pair; a filler has none."""
    counts = [0 if sample["source"] == FILLER else int((sample["labels"] != IGNORE_INDEX).sum()) for sample in samples]
    batch = collate_pairs(samples)
    batch["counts"] = counts
    return batch


def _compute(
    network,
    dataset: PreferenceDataset,
    rows: np.ndarray,
    folder: Path,
    loader: Mapping[str, Any],
    missing: list[int],
) -> None:
    """Computes the chunks that are missing."""
    rank, world = get_rank(), get_world_size()
    turns = -(-len(missing) // world)
    options = {key: loader[key] for key in ("batch_size", "num_workers")}
    was_training = network.training
    network.eval()
    with tqdm(total=turns * world, unit="chunk", desc="reference", disable=None if is_main_process() else True) as bar:
        for first in range(0, turns * world, world):
            # Under ZeRO-3 all ranks gather parameters together, so each computes a chunk, some a second time.
            chunk = missing[(first + rank) % len(missing)]
            part = rows[chunk * CHUNK : (chunk + 1) * CHUNK]
            values = list(_log_probs(network, _Records(dataset, part), options))[: len(part)]
            if first + rank < len(missing):
                save_chunk(folder, chunk, part, values)
            bar.update(world)
    network.train(was_training)
    barrier()
    if is_main_process():
        join_chunks(folder, -(-len(rows) // CHUNK), sum(len(source.index) for source in dataset.sources))
    barrier()


def _log_probs(network, records: _Records, options: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Those of each record, in order; of as many batches as any chunk has."""
    for batch in _repeating_last(
        DataLoader(records, collate_fn=_collate, **options), -(-CHUNK // options["batch_size"])
    ):
        counts = batch["counts"]
        values = network.reference_log_probs(**network.data_preprocessor(batch)).float().cpu().numpy()
        answers = np.split(values, np.cumsum([count or FILLER_TOKENS for count in counts])[:-1])
        yield from (answer[:count] for answer, count in zip(answers, counts, strict=True))


def _repeating_last(batches: DataLoader, count: int) -> Iterator[dict]:
    for batch in batches:
        count -= 1
        yield batch
    for _ in range(count):
        yield batch
