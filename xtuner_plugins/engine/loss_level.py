"""Tells a loss that explodes from a noisy one: by the median of recent steps, and by how many in a row are far above.

::

    loss   |                    .--^-.---^--      high: above the limit; 20 in a row are an explosion
           |                   |
     limit |- - - - - - - - - -|- - - - - - -     twice the level, and at least 2 nats above it
           |'-.        .       |
     level |---'-.-^.-' '-^.-^-'- - - - - - -     median of the last 100 steps that weren't high
           '----------------------------------    optimizer steps

Why this doesn't stop a healthy run: even where every second step of shuffled data is high, 20 in a row have a chance of
one in a million per step; where it is one step in four, of one in 10^12. A loss that falls, as in the warm-up, is never
high. Twice a level close to zero is nothing, hence the 2 nats. The first steps have no level yet and are judged by the
loss of guessing, near which an untrained model begins.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

NUM_GUESSES = 10  # steps until the level is that of the run
MARGIN = 2.0  # nats per token


class LossLevel:
    """The usual level of a loss, and how many steps in a row were far above it.

    Args:
        guessing: The loss of a model that knows nothing, the logarithm of the size of its vocabulary. Stands for the
            steps before the first.
        factor: Times the level that a step is above at least to be high.
        window: Steps that make the level, those before the first included; high ones are left out.

    Attributes:
        num_high: High steps in a row up to now.
    """

    def __init__(self, guessing: float, factor: float = 2.0, window: int = 100):
        self._factor = factor
        self._recent = deque([guessing] * NUM_GUESSES, maxlen=window)
        self.num_high = 0

    @property
    def level(self) -> float:
        """The median of the recent steps."""
        return statistics.median(self._recent)

    @property
    def limit(self) -> float:
        """A step with a larger loss is high."""
        return max(self._factor * self.level, self.level + MARGIN)

    def add(self, loss: float) -> bool:
        """Takes the loss of a step; returns whether it is high."""
        if loss > self.limit:
            self.num_high += 1
            return True
        self.num_high = 0
        self._recent.append(loss)
        return False

    def state(self) -> dict[str, Any]:
        """What `restore` takes: plain numbers."""
        return {"recent": list(self._recent), "num_high": self.num_high}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, with this object's factor and window."""
        self._recent = deque(state["recent"], maxlen=self._recent.maxlen)
        self.num_high = state["num_high"]
