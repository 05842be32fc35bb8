"""One evaluation: a model, its data sets, and the folder that answers and results go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..inference.answer_file import AnswerFile
from ..inference.batch_answers import Answered, Job
from ..inference.description import describe
from ..inference.opening import Source
from .data_sets import DataSet, answer_data_sets, answers_to, unanswered
from .measured import measure
from .report_page import write_report
from .results import ANSWERS, REPORT, rows_of, summary, versions, write_results


class Evaluation:
    """Holds the folder while it is open: no second run writes to it.

    Args:
        source: The model, from `find_source`.
        job: How it is asked.
        data_sets: From `open_data_sets`.
        out: The folder; made where it isn't there.
        limit: Given to `open_data_sets`; None for all questions.

    Attributes:
        num_left: Questions that the folder has no answer to.

    Raises:
        ValueError: Another run writes there, or began it with other weights, data or settings; the message names them.
    """

    def __init__(
        self, source: Source, job: Job, data_sets: Sequence[DataSet], out: str | Path, *, limit: int | None = None
    ):
        from ..inference.session import resolve_device, resolve_dtype

        self._job, self._data_sets, self._out, self._limit = job, data_sets, Path(out), limit
        opening = job.opening
        described = describe(source, template=opening.get("template"), max_tiles=opening.get("max_tiles"))
        device = resolve_device(opening.get("device", "auto"))
        dtype = str(resolve_dtype(opening.get("dtype", "auto"), device)).removeprefix("torch.")
        self._described = described
        self._made_by = {
            "model": str(source),
            "weights": described.weights_hash(),
            "dtype": dtype,
            **job.generation,
            **described.preprocessing,
            **{f"data {each.name}": each.hash for each in data_sets},
        }
        self._file = AnswerFile(self._out / ANSWERS, self._made_by)
        try:
            self.num_left = len(unanswered(data_sets, self._file))
        except ValueError:
            self._file.__exit__(None, None, None)
            raise

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.__exit__(kind, error, trace)

    def answer(self) -> Iterator[Answered]:
        """As `answer_data_sets`."""
        return answer_data_sets(self._job, self._data_sets, self._file)

    def finish(self) -> dict[str, Any]:
        """Measures what is answered and writes results.json, items.jsonl and report.html; returns the first.

        Raises:
            OSError: They can't be written.
        """
        measured = [
            measure(each.name, each.metric, each.items, answers_to(each, self._file)) for each in self._data_sets
        ]
        rows = [row for each in measured for row in rows_of(each, self._described.lengths)]
        results = {
            "model": {key: self._made_by[key] for key in ("model", "weights")},
            "preprocessing": {"hash": self._described.preprocessing_hash(), **self._described.preprocessing},
            "settings": {
                **self._job.generation,
                **{key: value for key, value in self._job.opening.items() if key not in ("device", "dtype")},
                "dtype": self._made_by["dtype"],
                "batch_size": self._job.batch_size,
                "processes": self._job.processes,
                "limit": self._limit,
            },
            "versions": versions(),
            "datasets": {
                each.name: summary(found, each.left_out, {"path": each.path, "kind": each.kind, "hash": each.hash})
                for each, found in zip(self._data_sets, measured, strict=True)
            },
        }
        write_results(self._out, results, rows)
        write_report(self._out / REPORT, results, rows)
        return results
