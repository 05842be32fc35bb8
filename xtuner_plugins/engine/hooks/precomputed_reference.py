"""Computes the reference's log probabilities once, before the first step, on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from ...datasets.dataset import bind_worker
from ...datasets.left_out import FILLER
from ...datasets.preference import SEGMENTS_PER_PAIR, PreferenceDataset, collate_pairs, filler_pair
from ...datasets.reference import ReferenceLogProbs
from ...errors import DataError, SettingError
from ...files import content_hash
from ...processes import progress_bar
from ...weights.reading import weight_files
from ..run.loops import TrainingStopped
from ..run.steps import unwrap


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
        SettingError: The folder can't be written, or the dataset has `jpeg_quality`.
    """

    priority = "VERY_HIGH"

    def __init__(self, folder: str = "work_dirs/reference"):
        self._folder = folder

    def before_train(self, runner) -> None:
        """Computes what is missing, before the loop's workers start."""
        network, dataset = unwrap(runner.model), runner.train_dataloader.dataset
        if not getattr(network, "precomputed_reference", False):
            return
        if changed := [source.name for source in dataset.sources if source.jpeg_quality]:
            raise SettingError(
                "precompute_reference",
                f"precompute_reference with jpeg_quality ({', '.join(changed)}): the reference would see other images",
                "leave one of them out",
            )
        files = [Path(network.base, "config.json"), *weight_files(network.base)]
        held = repr((network.dtype, *map(runner.cfg.model.get, ("llm_quantization", "visual_encoder_quantization"))))
        model = [held, *(content_hash(path) for path in files)]
        reference = ReferenceLogProbs(self._folder, dataset, model)
        found = [reference.missing()]  # as rank 0 sees them: another run may write there meanwhile
        broadcast_object_list(found)
        if found[0]:
            if not network.reference_is_complete and (runner.iter > 0 or runner.cfg.get("load_from")):
                raise TrainingStopped(
                    f"{reference.folder.absolute()} isn't complete, and only a run that begins with the base computes "
                    "the log probabilities of the reference. Start once with max_steps=1, without --resume and "
                    "load_from; or export these weights as a base and begin with that"
                )
            if is_main_process():
                reference.begin()
            _compute(network, dataset, reference, runner.cfg.train_dataloader, found[0])
        dataset.reference = reference
        pairs = f"{reference.num_records:,} pairs"
        print_log(f"log probabilities of the reference for {pairs}: {reference.folder}", "current")


def _load(dataset: PreferenceDataset, records: Sequence[tuple[int, int]]) -> dict:
    """The batch of some records; one that can't be read comes into the ledger when training takes it."""
    bind_worker()
    samples = []
    for number, row in records:
        try:
            samples.append(dataset.load(number, row))
        except DataError:
            samples.append(filler_pair(dataset.tile_size))
    return collate_pairs(samples)


def _compute(
    network, dataset: PreferenceDataset, reference: ReferenceLogProbs, loader: Mapping[str, Any], missing: list[int]
) -> None:
    """Computes the chunks that are missing, each by one rank.

    Under ZeRO-3 all ranks gather parameters together, so each computes as many chunks, some of them a second time.
    """
    rank, world = get_rank(), get_world_size()
    chunks = [missing[(first + rank) % len(missing)] for first in range(0, len(missing), world)]
    records = [record for chunk in chunks for record in reference.records(chunk)]
    options = {key: loader[key] for key in ("batch_size", "num_workers")}
    batches = DataLoader(records, collate_fn=partial(_load, dataset), **options)
    values, size = [], len(records) // len(chunks)
    for batch in progress_bar(iterable=batches, desc="reference", unit="batch", disable=not is_main_process()):
        values += _log_probs(network, batch)
        while len(values) >= size:
            reference.save(chunks.pop(0), values[:size])
            del values[:size]
    barrier()


def _log_probs(network, batch: dict) -> list[np.ndarray]:
    """Those of each pair of a batch; a filler has none."""
    inputs = network.data_preprocessor(batch)
    values, pairs = network.reference_log_probs(**inputs), inputs["row"].owners // SEGMENTS_PER_PAIR
    counts = torch.bincount(pairs, minlength=len(batch["sources"])).tolist()
    each = np.split(values.float().cpu().numpy(), np.cumsum(counts)[:-1])
    return [found[:0] if source == FILLER else found for source, found in zip(batch["sources"], each, strict=True)]
