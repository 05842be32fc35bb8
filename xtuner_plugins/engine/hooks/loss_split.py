"""The training loss by dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from ...models.losses import supervised_per_sample

LOG_INTERVAL = 10  # optimizer steps, in a run without a logger


@HOOKS.register_module()
class LossSplitHook(Hook):
    """Tracks ``loss_by_dataset/NAME`` at the log interval.

    It is the mean cross entropy of all supervised tokens since the last time, over all ranks. ``loss_weight`` of a
    dataset doesn't count. The sums per sample stay on the device until then and are carried together, so a step waits
    for nothing. A dataset without a token in the interval isn't tracked.
    """

    priority = "BELOW_NORMAL"

    def __init__(self):
        self._losses: list[torch.Tensor] = []  # one tensor [samples] per micro-batch
        self._samples: list[tuple[str, int]] = []  # dataset and supervised tokens of each of these samples
        self._interval = LOG_INTERVAL

    def before_train(self, runner) -> None:
        """Takes the logger's interval."""
        self._interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), LOG_INTERVAL)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Sequence[dict], outputs: Any = None) -> None:
        """Keeps a step's sums; at the log interval passes the means to the visualizer."""
        for batch in data_batch:
            losses, counts = batch.pop("sample_losses"), supervised_per_sample(batch).tolist()
            samples = list(zip(batch.get("datasets", ()), counts, strict=False))
            self._losses.append(losses)
            self._samples += samples + [("", 0)] * (len(losses) - len(samples))  # the padding of a pack
        if self.every_n_inner_iters(batch_idx, self._interval) and (means := self._take_means()):
            runner.visualizer.add_scalars(means, step=runner.iter + 1)

    def _take_means(self) -> dict[str, float]:
        losses, tokens = Counter(), Counter()
        for loss, (name, count) in zip(torch.cat(self._losses).tolist(), self._samples, strict=True):
            losses[name] += loss
            tokens[name] += count
        self._losses, self._samples = [], []
        parts = all_gather_object((dict(losses), dict(tokens)))
        losses, tokens = (sum((Counter(part[index]) for part in parts), Counter()) for index in (0, 1))
        return {f"loss_by_dataset/{name}": losses[name] / tokens[name] for name in sorted(tokens) if name}
