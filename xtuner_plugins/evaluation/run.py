"""One evaluation: a model, its data sets, and the folder that answers and results go to.

Answers are appended as they come, one line each, and a run that was stopped goes on from them::

    {"id": "own/a", "images": ["a.jpg"], "question": "What is it?", "answer": "A bus.", "made_by": {"model": ...}}

``made_by`` tells model, data and options: what others began isn't gone on with, so no file mixes two models unnoticed.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..dtypes import describe_dtype, resolve_dtype
from ..files import text_hash
from ..inference.batch_answers import Answered, Job, answer_all
from ..inference.opening import Source, describe
from ..inference.questions import Unusable
from .benchmarks import DataSet
from .page import write_report
from .results import ANSWERS, ITEMS, REPORT, RESULTS, measure, summary, versions, write_results


def open_answers(path: Path, made_by: Mapping[str, Any]) -> tuple[BinaryIO, dict[str, str]]:
    """A file of answers, locked and open for appending, and its answers by id; an unfinished last line is cut off.

    Raises:
        ValueError: Another run writes it, it holds something else, other settings made it, or only results are there.
    """
    found = [name for name in (RESULTS, ITEMS, REPORT) if path.with_name(name).exists()]
    if found and not path.exists():
        told = f"holds {', '.join(found)} but no {path.name}; give another --out, or remove what is there"
        raise ValueError(f"{path.parent} {told}")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file, _read(file, path, made_by)
    except (BlockingIOError, ValueError) as error:
        file.close()
        locked = f"{path} is being written by another run; wait for it, or give another --out"
        raise ValueError(locked if isinstance(error, BlockingIOError) else str(error)) from None


def _read(file: BinaryIO, path: Path, made_by: Mapping[str, Any]) -> dict[str, str]:
    file.seek(0)
    *lines, rest = (content := file.read()).split(b"\n")
    try:
        rows = [json.loads(line) for line in lines]
        found, makers = {row["id"]: row["answer"] for row in rows}, [row["made_by"] for row in rows]
        whole = len(found) == len(rows) and (not rest or rest.startswith(b'{"id": '[: len(rest)]))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: not answers of this tool; give another --out")
    for other in (maker for maker in makers if maker != made_by):
        pairs = {name: (other.get(name), made_by.get(name)) for name in {**other, **made_by}}
        said = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in pairs.items() if was != now)
        raise ValueError(f"{path} was made with other settings: {said}; give the same ones, or another --out")
    file.truncate(len(content) - len(rest))
    return found


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
        self._made_by = {**self._model, **self._settings, **self._described.preprocessing}
        self._made_by |= {f"data {each.name}": each.hash for each in data_sets}
        self._file, self._answers = open_answers(self._out / ANSWERS, self._made_by)
        self.close = self._file.close
        asked = [each.asked(question) for each in data_sets for question in each.questions]
        self.unanswered = [question for question in asked if question.id not in self._answers]

    def answer(self) -> Iterator[Answered]:
        """Asks what is unanswered, in batches across all data sets; yields each question when it is done.

        Answers go to the file, questions that can't be asked to `left_out` of their data set.

        Raises:
            ValueError: The model can't be opened.
            RuntimeError: Out of memory.
        """
        homes = {each.name: each for each in self._data_sets}
        for question, answer in answer_all(self._job, self.unanswered, self._described.lengths):
            if isinstance(answer, Unusable):
                homes[question.id.partition("/")[0]].left_out.append(answer)
            else:
                row = {"id": question.id, "images": question.images, "question": question.text, "answer": answer}
                row["made_by"] = self._made_by
                self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                self._file.flush()  # in the file, though perhaps not on the disk yet
                self._answers[question.id] = answer
            yield question, answer

    def finish(self) -> dict[str, Any]:
        """Measures what is answered and writes results.json, items.jsonl and report.html; returns the first.

        Raises:
            OSError: They can't be written.
        """
        measured, preprocessing = [], dict(self._described.preprocessing)
        for each in self._data_sets:
            known = {question.id: self._answers.get(each.asked(question).id) for question in each.questions}
            measured.append(measure(each, {name: answer for name, answer in known.items() if answer is not None}))
        rows = [row for each in measured for row in each.rows]
        results = {
            "model": self._model,
            "preprocessing": {"hash": text_hash(json.dumps(preprocessing, sort_keys=True)), **preprocessing},
            "settings": {**self._settings, "batch_size": self._job.batch_size, "limit": self._limit},
            "versions": versions(),
            "datasets": {pair[1].name: summary(*pair) for pair in zip(measured, self._data_sets, strict=True)},
        }
        write_results(self._out, results, rows)
        write_report(self._out / REPORT, results, rows)
        return results
