"""How far the current optimizer step is, for a line where one takes long."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch


class Progress:
    """Counts the micro-batches of a step. On a GPU these are handed over, not yet computed.

    Attributes:
        done, total: Micro-batches of the step; 0 between steps.
        tokens: Positions in those that are done.
        since: When the step began or ended, of `time.monotonic`.
    """

    def __init__(self):
        self.end()

    def begin(self, total: int) -> None:
        """Starts a step."""
        self.done, self.total, self.tokens, self.since = 0, total, 0, time.monotonic()

    def count(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Notes a micro-batch that is done."""
        self.done, self.tokens = self.done + 1, self.tokens + batch["input_ids"].numel()

    def end(self) -> None:
        """Ends a step."""
        self.begin(0)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.since
        if not self.total:
            return f"loading its data, validating or saving, {seconds:.0f} s"
        return f"micro-batch {self.done} of {self.total}, {self.tokens:,} tokens, {seconds:.0f} s"


progress = Progress()  # a process trains one step at a time
