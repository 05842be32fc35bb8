"""The panel: a few images with questions that a run answers again and again while it trains.

panel.jsonl in the work directory, one line per question and time:
{"step": 500, "image": "panel/cat-1f0c2a9b.png", "question": "What is it?", "answer": "A cat.", "expected": null}
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ranges import RangeError

FILE, FOLDER = "panel.jsonl", "panel"  # in the work directory
FIELDS = ("image", "question", "expected")


@dataclass(frozen=True)
class PanelRecord:
    """A question about an image.

    Attributes:
        image: Path of the image.
        question: The question; ``<image>`` marks the image's position, by default it goes before the text.
        expected: The answer that a reader compares with, or None.
    """

    image: Path
    question: str
    expected: str | None = None


def read_panel(panel: str | Sequence[Mapping[str, Any]] | None) -> list[PanelRecord]:
    """The records of the setting ``panel``; imports nothing that takes long.

    Args:
        panel: A jsonl file with an object ``{"image", "question", "expected"}`` per line, where ``expected`` may be
            left out; a list of such dicts; None for no panel. Images are relative to the file's folder, those of a list
            to the current one.

    Raises:
        RangeError: Names the file and line, or the entry of the list, that can't be used.
    """
    if not panel:
        return []
    if isinstance(panel, str):
        return [_record(value, where, Path(panel).parent) for where, value in _lines(Path(panel))]
    if isinstance(panel, Mapping) or not isinstance(panel, Sequence):
        raise RangeError(f"panel={panel!r} can't be used", "give a jsonl file, or a list of dicts")
    return [_record(value, f"panel[{index}]", Path()) for index, value in enumerate(panel)]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise RangeError(f"panel: file {path} does not exist", "correct it, or set panel = None for none")
    found = False
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            found = True
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise RangeError(f"{path}:{number}: no JSON ({error})", "write one object per line") from None
    if not found:
        raise RangeError(f"panel: {path} holds no record", "write one object per line, or set panel = None for none")


def _record(value: Any, where: str, folder: Path) -> PanelRecord:
    remedy = 'give {"image": FILE, "question": TEXT}, and "expected": TEXT if you like'
    if not isinstance(value, Mapping):
        raise RangeError(f"{where}: {value!r} is no record of a panel", remedy)
    if unknown := set(value) - set(FIELDS):
        raise RangeError(f"{where}: unknown field {', '.join(map(repr, sorted(map(str, unknown))))}", remedy)
    for name in ("image", "question"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            raise RangeError(f"{where}: {'an' if name == 'image' else 'a'} {name} is missing", remedy)
    expected = value.get("expected")
    if expected is not None and not isinstance(expected, str):
        raise RangeError(f"{where}: expected={expected!r} is no text", remedy)
    if value["question"].count("<image>") > 1:
        raise RangeError(f"{where}: the question has several <image>, but a record has one image", remedy)
    image = folder / value["image"]
    if not image.is_file():
        raise RangeError(f"{where}: image {image} does not exist", "correct its path (relative to the panel's folder)")
    return PanelRecord(image, value["question"], expected)


class PanelLog:
    """The file of answers and the copies of the images in a run's work directory; for the main process.

    Args:
        work_dir: Of the run.
        records: The panel.
    """

    def __init__(self, work_dir: str | Path, records: Sequence[PanelRecord]):
        self._path, self.records = Path(work_dir) / FILE, list(records)
        self.images: list[str] = []  # of each record, relative to the work directory

    def start(self, next_step: int) -> None:
        """Copies the images, and removes answers from ``next_step`` on, which a resumed run gives again."""
        (self._path.parent / FOLDER).mkdir(parents=True, exist_ok=True)
        self.images = [self._copy(record.image) for record in self.records]
        if self._path.is_file():
            kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _is_before(line, next_step)]
            beside = self._path.with_name(f".{FILE}.partial")
            beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(beside, self._path)

    def append(self, step: int, answers: Iterable[str]) -> None:
        """Adds one line per record."""
        with self._path.open("a", encoding="utf-8") as file:
            for record, image, answer in zip(self.records, self.images, answers, strict=True):
                line = {
                    "step": step,
                    "image": image,
                    "question": record.question,
                    "answer": answer,
                    "expected": record.expected,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _copy(self, image: Path) -> str:
        digest = hashlib.sha256(image.read_bytes()).hexdigest()[:8]
        name = f"{FOLDER}/{image.stem}-{digest}{image.suffix.lower()}"
        target = self._path.parent / name
        if not target.is_file():
            beside = target.with_name(f".{target.name}.partial")
            shutil.copyfile(image, beside)
            os.replace(beside, target)
        return name


def _is_before(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):
        return False  # half a line of a killed run
