"""The training loss by dataset, by number of tiles and by length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from ...models.losses import supervised_per_sample

LOG_INTERVAL = 10  # optimizer steps, in a run without a logger


@HOOKS.register_module()
class LossSplitHook(Hook):
    """Tracks ``loss_by_dataset/NAME``, ``loss_by_tiles/2-3`` and ``loss_by_tokens/256-511`` at the log interval.

    Each is the mean cross entropy of all supervised tokens since the last time, over all ranks. ``loss_weight`` of a
    dataset doesn't count. The sums per sample stay on the device until then and are carried together, so a step waits
    for nothing. Buckets of tiles and tokens are powers of two; one without a token in the interval isn't tracked.
    """

    priority = "BELOW_NORMAL"

    def __init__(self):
        self._losses: list[torch.Tensor] = []  # one tensor [samples] per micro-batch
        self._groups: list[list[tuple[tuple[str, ...], int]]] = []  # names and supervised tokens of its samples
        self._interval = LOG_INTERVAL

    def before_train(self, runner) -> None:
        """Takes the logger's interval."""
        self._interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), LOG_INTERVAL)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Sequence[dict], outputs: Any = None) -> None:
        """Keeps a step's sums; at the log interval passes the means to the visualizer."""
        for batch in data_batch:
            self._losses.append(batch.pop("sample_losses"))
            self._groups.append(list(_describe_samples(batch)))
        if self.every_n_inner_iters(batch_idx, self._interval):
            means = self._take_means()
            if means:
                runner.visualizer.add_scalars(means, step=runner.iter + 1)

    def _take_means(self) -> dict[str, float]:
        values = iter(torch.cat(self._losses).tolist())
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for losses, groups in zip(self._losses, self._groups, strict=True):
            own = [next(values) for _ in range(len(losses))]
            for loss, (names, count) in zip(own, groups, strict=False):  # the padding of a pack has no group
                for name in names:
                    sums[name][0] += loss
                    sums[name][1] += count
        self._losses, self._groups = [], []
        total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for part in all_gather_object(dict(sums)):
            for name, (loss, count) in part.items():
                total[name][0] += loss
                total[name][1] += count
        return {name: loss / count for name, (loss, count) in sorted(total.items()) if count}


def _describe_samples(batch: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Names of the groups and supervised tokens of each sample of a collated batch."""
    counts = supervised_per_sample(batch).tolist()
    if "cu_seqlens" in batch:
        lengths = batch["cu_seqlens"].diff()
        if "follows" in batch:  # prompt and answers of a pair
            lengths = lengths.view(len(batch["num_tiles"]), -1).sum(1)
        lengths = lengths.tolist()
    else:
        lengths = batch["attention_mask"].sum(1).tolist()
    names = batch.get("datasets") or [""] * len(batch["num_tiles"])
    for name, tiles, length, count in zip(names, batch["num_tiles"].tolist(), lengths, counts, strict=False):
        of_dataset = (f"loss_by_dataset/{name}",) if name else ()
        yield (*of_dataset, f"loss_by_tiles/{bucket(tiles)}", f"loss_by_tokens/{bucket(length)}"), count


def bucket(number: int) -> str:
    """The range between two powers of two that holds a number, e.g. 0, 1, 2-3, 4-7."""
    if number < 2:
        return str(number)
    low = 1 << (number.bit_length() - 1)
    return f"{low}-{2 * low - 1}"
