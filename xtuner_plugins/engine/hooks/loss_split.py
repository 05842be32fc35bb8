"""The training loss by dataset, by number of tiles and by length."""

from __future__ import annotations

from collections import Counter
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
        self._groups: list[tuple[tuple[str, ...], int]] = []  # names and supervised tokens of each of these samples
        self._interval = LOG_INTERVAL

    def before_train(self, runner) -> None:
        """Takes the logger's interval."""
        self._interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), LOG_INTERVAL)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Sequence[dict], outputs: Any = None) -> None:
        """Keeps a step's sums; at the log interval passes the means to the visualizer."""
        for batch in data_batch:
            losses, groups = batch.pop("sample_losses"), list(_describe_samples(batch))
            self._losses.append(losses)
            self._groups += groups + [((), 0)] * (len(losses) - len(groups))  # the padding of a pack
        if self.every_n_inner_iters(batch_idx, self._interval) and (means := self._take_means()):
            runner.visualizer.add_scalars(means, step=runner.iter + 1)

    def _take_means(self) -> dict[str, float]:
        own, totals = (Counter(), Counter()), (Counter(), Counter())  # losses and tokens, of this rank and of all
        for loss, (names, count) in zip(torch.cat(self._losses).tolist(), self._groups, strict=True):
            own[0].update(dict.fromkeys(names, loss))
            own[1].update(dict.fromkeys(names, count))
        self._losses, self._groups = [], []
        for part in all_gather_object(own):
            for total, found in zip(totals, part, strict=True):
                total.update(found)
        losses, tokens = totals
        return {name: losses[name] / count for name, count in sorted(tokens.items()) if count}


def _describe_samples(batch: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Names of the groups and supervised tokens of each sample of a collated batch."""
    counts = supervised_per_sample(batch).tolist()
    if "cu_seqlens" in batch:
        lengths = batch["cu_seqlens"].diff()
        if "follows" in batch:  # prompt and answers of a pair
            lengths = lengths.view(len(batch["num_tiles"]), -1).sum(1)
    else:
        lengths = batch["attention_mask"].sum(1)
    names = batch.get("datasets") or [""] * len(batch["num_tiles"])
    for name, tiles, length, count in zip(names, batch["num_tiles"].tolist(), lengths.tolist(), counts, strict=False):
        of_dataset = (f"loss_by_dataset/{name}",) if name else ()
        yield (*of_dataset, f"loss_by_tiles/{bucket(tiles)}", f"loss_by_tokens/{bucket(length)}"), count


def bucket(number: int) -> str:
    """The range between two powers of two that holds a number, e.g. 0, 1, 2-3, 4-7."""
    low = 1 << (number.bit_length() - 1) if number else 0
    return str(number) if number < 2 else f"{low}-{2 * low - 1}"
