"""Scores while training: benchmark files answered by the current weights, and measured, as `tools/evaluate.py` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size

from ..checkpoints.partition import is_partitioned
from ..evaluation.data_sets import open_data_sets
from ..evaluation.measured import Measured, measure
from ..inference.batch_answers import answer_batch, lengths_of, plan_batches
from ..inference.questions import Unusable
from ..inference.session import ChatSession


@dataclass(frozen=True)
class Scores:
    """What the answers of one validation are worth.

    Attributes:
        measured: Of each data set.
        left_out: Questions that could not be asked.
    """

    measured: Sequence[Measured]
    left_out: int

    def scalars(self) -> dict[str, float]:
        """What trackers get: ``val/DATASET/FIGURE``, such as ``val/own/accuracy``."""
        return {f"val/{each.name}/{key}": value for each in self.measured for key, value in each.figures.items()}

    def describe(self) -> str:
        """One line: the headline of each data set."""
        parts = [
            f"{each.name} {each.metric.headline} {each.headline:.1f} of {len(each.items):,}"
            for each in self.measured
            if each.headline is not None
        ]
        return ", ".join(parts) + (f"; left out: {self.left_out:,}" if self.left_out else "")


class ValidationScores:
    """Benchmark files that a run answers again and again.

    Args:
        paths: The files.
        images: Their image folder; None takes that of each file.
        metric: For all of them; None takes each benchmark's own.
        limit: About so many questions of each.
        batch_size: Questions that a rank answers at a time.
        max_new_tokens: Length limit of an answer.

    Raises:
        DataError: A file or a metric that can't be used.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        images: str | None = None,
        metric: str | None = None,
        limit: int | None = None,
        batch_size: int = 4,
        max_new_tokens: int = 128,
    ):
        self.data_sets = open_data_sets(paths, images=images, metric=metric, limit=limit)
        self._questions = [each.asked(item) for each in self.data_sets for item in each.items]
        self._batch_size, self._generation = batch_size, {"max_new_tokens": max_new_tokens}

    def measure(
        self, network: torch.nn.Module, session: ChatSession, should_stop: Callable[[], object] = lambda: False
    ) -> Scores | None:
        """Answers all questions and measures them, on every rank; None where it was stopped.

        Ranks share the batches. Under ZeRO-3 all of them answer each one, because they gather parameters together.

        Args:
            network: The training model.
            session: Over its weights.
            should_stop: Asked before each batch; the same on every rank.
        """
        together = any(map(is_partitioned, network.parameters()))
        ranks, rank = (1, 0) if together else (get_world_size(), get_rank())
        batches, unusable = plan_batches(self._questions, lengths_of(session), self._batch_size)
        own: dict[str, str | Unusable] = {question.id: reason for question, reason in unusable}
        for start in range(0, len(batches), ranks):
            if should_stop():
                return None
            if start + rank < len(batches):
                with network.computing(session.device):
                    found = answer_batch(session, batches[start + rank], self._generation)
                own.update((question.id, answer) for question, answer in found)
        answers = {name: answer for part in all_gather_object(own) for name, answer in part.items()}
        return self._scores(answers)

    def _scores(self, answers: Mapping[str, str | Unusable]) -> Scores:
        measured = []
        for each in self.data_sets:
            pairs = ((item.question.id, answers[each.asked(item).id]) for item in each.items)
            given = {name: answer for name, answer in pairs if not isinstance(answer, Unusable)}
            measured.append(measure(each.name, each.metric, each.items, given))
        left_out = sum(isinstance(answer, Unusable) for answer in answers.values())
        return Scores(measured, left_out + sum(len(each.left_out) for each in self.data_sets))
