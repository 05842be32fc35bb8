"""The file that answers are appended to as they come, and that a run which was stopped goes on from.

One line per answer::

    {"id": "a.jpg", "images": ["a.jpg"], "question": "What is it?", "answer": "A bus.", "made_by": {"model": ...}}

``made_by`` tells model and options. A run goes on with a file only if the same model and options began it, so that no
file mixes answers of two models unnoticed.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from .questions import Question


class AnswerFile:
    """A JSONL file of answers, open for appending and locked against a second run.

    Args:
        path: The file; its folder is made.
        made_by: Model and options of this run.

    Attributes:
        answers: All answers in the file, by id.
        close: Closes the file and gives up the lock.

    Raises:
        ValueError: Another run writes it, it isn't such a file, or it was made by another model or with other options.
    """

    def __init__(self, path: str | Path, made_by: Mapping[str, object]):
        self.path, self.made_by = Path(path), dict(made_by)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._file = stack.enter_context(open(self.path, "a+b"))
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = f"{path} is being written by another run; wait for it, or give another --out"
                raise ValueError(said) from None
            self.answers = self._read()
            self.close = stack.pop_all().close

    def add(self, question: Question, answer: str) -> None:
        """Appends an answer; it is in the file (though perhaps not on the disk yet) when this returns."""
        row = {"id": question.id, "images": list(question.images), "question": question.text, "answer": answer}
        row["made_by"] = self.made_by
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.answers[question.id] = row

    def has(self, question: Question) -> bool:
        """Whether the question is answered already.

        Raises:
            ValueError: Its id stands there with another question or other images.
        """
        row = self.answers.get(question.id)
        if row is not None and (row["question"] != question.text or row["images"] != list(question.images)):
            raise ValueError(f"{self.path} answers another question under id {question.id!r}; give another --out")
        return row is not None

    def _read(self) -> dict[str, dict]:
        """The answers; the line that a killed run didn't finish is cut off."""
        self._file.seek(0)
        *lines, rest = (content := self._file.read()).split(b"\n")
        try:
            rows = [json.loads(line) for line in lines]
            found = {row["id"]: row for row in rows if {"question", "images", "answer", "made_by"} <= row.keys()}
            whole = len(found) == len(rows) and (not rest or rest.startswith(b'{"id": '[: len(rest)]))
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ValueError(f"{self.path}: not answers of this tool; give another --out")
        for other in (row["made_by"] for row in rows if row["made_by"] != self.made_by):
            pairs = {name: (other.get(name), self.made_by.get(name)) for name in {**other, **self.made_by}}
            said = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in pairs.items() if was != now)
            raise ValueError(f"{self.path} was made with other settings: {said}; give the same ones, or another --out")
        self._file.truncate(len(content) - len(rest))
        return found
