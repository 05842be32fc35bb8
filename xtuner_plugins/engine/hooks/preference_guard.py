"""Warns of the two known ways in which preference tuning goes wrong while its loss falls."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS


@HOOKS.register_module()
class PreferenceGuardHook(Hook):
    """Warns, once each, where a falling loss of preference pairs hides that the model gets worse.

    - **Both answers get improbable.** The loss only compares the two: it falls, too, while the log probabilities of
      both fall and those of answers that are in no pair rise. The mean log probability per token of the chosen answers
      over the last ``window`` steps is compared with that over the first ``window`` steps of this process.
    - **Length is rewarded.** Margins go along with how much longer (or shorter) the chosen answer is
      (``length_correlation``, see `means_of_step`) in each of ``window`` steps.

    Args:
        fall: Nats per token that the chosen answers may lose; None doesn't look.
        correlation: Largest size of ``length_correlation``; None doesn't look.
        window: Steps.

    Raises:
        ValueError: A number out of range.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, fall: float | None = 1.0, correlation: float | None = 0.8, window: int = 50):
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"window={window!r}: give a number of steps, 1 or more")
        if fall is not None and not fall > 0:
            raise ValueError(f"fall={fall!r}: give nats per token above 0, or None to switch it off")
        if correlation is not None and not 0 < correlation < 1:
            raise ValueError(f"correlation={correlation!r}: give a number between 0 and 1, or None to switch it off")
        self._fall, self._correlation, self._window = fall, correlation, window

    def before_train(self, runner) -> None:
        """Forgets what another run has shown."""
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=self._window)
        self._correlated = 0
        self._warned: set[str] = set()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Looks at the means of the step's pairs."""
        if not outputs or not outputs.get("pairs"):
            return
        self._look_at_chosen(outputs["log_prob_chosen"] / outputs["tokens_chosen"], runner.iter + 1)
        self._look_at_length(outputs.get("length_correlation", 0.0), runner.iter + 1)

    def _look_at_chosen(self, log_prob: float, step: int) -> None:
        if len(self._first) < self._window:
            self._first.append(log_prob)
            return
        self._last.append(log_prob)
        before, now = sum(self._first) / len(self._first), sum(self._last) / len(self._last)
        if self._fall is not None and len(self._last) == self._window and before - now > self._fall:
            self._warn(
                "fall",
                f"step {step}: the chosen answers get improbable: {now:.2f} nats per token in the last {self._window} "
                f"steps, {before:.2f} in the first. The model learns to write neither answer. Add sft to objectives "
                "(such as 1.0), raise beta, or lower lr",
            )

    def _look_at_length(self, correlation: float, step: int) -> None:
        is_high = self._correlation is not None and abs(correlation) > self._correlation
        self._correlated = self._correlated + 1 if is_high else 0
        if self._correlated >= self._window:
            longer = "longer" if correlation > 0 else "shorter"
            self._warn(
                "length",
                f"step {step}: the reward follows the length: margins and lengths correlate by {correlation:.2f} since "
                f"{self._window} steps, so the model may learn to answer {longer} instead of better. Set "
                "reward_per_token = True, or take out pairs whose answers differ in length above all",
            )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            print_log(text, "current", logging.WARNING)
