"""One evaluation: a model, its data sets, and the folder that answers and results go to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ..dtypes import describe_dtype, resolve_dtype
from ..files import text_hash
from ..inference.answer_file import AnswerFile
from ..inference.batch_answers import Answered, Job, answer_all
from ..inference.opening import Source, describe
from ..inference.questions import Unusable
from .benchmarks import DataSet
from .page import write_report
from .results import ANSWERS, REPORT, measure, summary, versions, write_results


class Evaluation:
    """Holds the folder until it is closed: no second run writes to it.

    Args:
        source: The model, from `find_source`.
        job: How it is asked.
        data_sets: From `open_data_sets`.
        out: The folder; made where it isn't there.
        limit: Given to `open_data_sets`; None for all questions.

    Attributes:
        unanswered: Questions that the folder has no answer to.
        close: Gives the folder up.
        computes_in: The dtype and the device, and whether another dtype would be faster.

    Raises:
        ValueError: Another run writes there, or began it with other weights, data or settings; the message names them.
    """

    def __init__(
        self, source: Source, job: Job, data_sets: Sequence[DataSet], out: str | Path, *, limit: int | None = None
    ):
        from ..inference.session import resolve_device

        self._job, self._data_sets, self._out, self._limit, opening = job, data_sets, Path(out), limit, job.opening
        self._described = describe(source, template=opening.get("template"), max_tiles=opening.get("max_tiles"))
        name, device = opening.get("dtype", "auto"), resolve_device(opening.get("device", "auto"))
        dtype = resolve_dtype(name, device)
        self.computes_in = describe_dtype(name, dtype, device, "--dtype ")
        self._model = {"model": str(source), "weights": self._described.weights}
        self._settings = {**job.generation, "dtype": str(dtype).removeprefix("torch.")}
        made_by = {**self._model, **self._settings, **self._described.preprocessing}
        made_by |= {f"data {each.name}": each.hash for each in data_sets}
        with ExitStack() as stack:
            self._file = stack.enter_context(closing(AnswerFile(self._out / ANSWERS, made_by)))
            asked = (each.asked(question) for each in data_sets for question in each.questions)
            self.unanswered = [question for question in asked if not self._file.has(question)]
            self.close = stack.pop_all().close

    def answer(self) -> Iterator[Answered]:
        """Asks what is unanswered, in batches across all data sets; yields each question when it is done.

        Answers go to the file, questions that can't be asked to `left_out` of their data set.

        Raises:
            ValueError: The model can't be opened.
            RuntimeError: Out of memory, or a process was killed.
        """
        homes = {each.name: each for each in self._data_sets}
        for question, answer in answer_all(self._job, self.unanswered, self._described.lengths):
            if isinstance(answer, Unusable):
                homes[question.id.partition("/")[0]].left_out.append(answer)
            else:
                self._file.add(question, answer)
            yield question, answer

    def finish(self) -> dict[str, Any]:
        """Measures what is answered and writes results.json, items.jsonl and report.html; returns the first.

        Raises:
            OSError: They can't be written.
        """
        measured, preprocessing = [], dict(self._described.preprocessing)
        for each in self._data_sets:
            keys = {question.id: each.asked(question).id for question in each.questions}
            given = {name: self._file.answers[key]["answer"] for name, key in keys.items() if key in self._file.answers}
            measured.append(measure(each, given))
        rows = [row for each in measured for row in each.rows]
        asked = {"batch_size": self._job.batch_size, "processes": self._job.processes, "limit": self._limit}
        results = {
            "model": self._model,
            "preprocessing": {"hash": text_hash(json.dumps(preprocessing, sort_keys=True)), **preprocessing},
            "settings": {**self._settings, **asked},
            "versions": versions(),
            "datasets": {pair[1].name: summary(*pair) for pair in zip(measured, self._data_sets, strict=True)},
        }
        write_results(self._out, results, rows)
        write_report(self._out / REPORT, results, rows)
        return results
