"""Questions to answer: one per image of a folder, or one per line of a file.

A line of a file::

    {"id": "r-17", "image": "receipt.jpg", "question": "What is the total?"}

``images`` takes a list; without either the question is about no image. Without ``id`` it is ``line N``; without
``question`` the prompt of the command line is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..datasets.errors import DataError, RecordError
from ..datasets.images.media import ImageFolder
from ..datasets.records.json_index import parse_json

KEYS = ("id", "image", "images", "question")


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        id: Names the answer; unique among the questions.
        text: The question; may hold ``<image>`` for each image.
        images: Their names, as the folder or the record gives them.
        paths: Their files.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unusable:
    """A question that can't be asked, and why; the message names the file or the line."""

    id: str
    message: str


def from_folder(folder: str | Path, prompt: str) -> list[Question]:
    """A question about each image of a folder and its subfolders, in the order of their names.

    Files whose suffix isn't one that Pillow reads are no images; hidden files and folders are passed over.

    Raises:
        SettingError: The folder isn't there.
    """
    images = ImageFolder(folder)
    return [Question(name, prompt, (name,), (images.resolve(name),)) for name in _image_names(Path(folder))]


def _image_names(folder: Path) -> list[str]:
    from PIL import Image

    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            (Path(here) / name).relative_to(folder).as_posix()
            for name in files
            if Path(name).suffix.lower() in readable and not name.startswith(".")
        ]
    return sorted(found)


def from_file(path: str | Path, folder: str | Path | None, prompt: str | None) -> Iterator[Question | Unusable]:
    """The questions of a file of JSON lines, in its order, empty lines passed over.

    Args:
        path: The file.
        folder: Images are inside it; None takes the folder of the file, and absolute names.
        prompt: Question of lines without one.

    Raises:
        SettingError: The folder isn't there.
        OSError: The file can't be read.
    """
    images, seen = ImageFolder(folder, Path(path).parent), set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                question = _question(parse_json(line, place), number, place, images, prompt)
                if question.id in seen:
                    raise RecordError("id", f"id {question.id!r} was used before", "give each line its own", place)
            except DataError as error:
                yield Unusable(f"line {number}", str(error) if place in str(error) else f"{place}: {error}")
                continue
            seen.add(question.id)
            yield question


def _question(record: object, number: int, place: str, folder: ImageFolder, prompt: str | None) -> Question:
    if not isinstance(record, dict):
        raise RecordError("record", "not an object", 'write {"image": ..., "question": ...}', place)
    if unknown := sorted(record.keys() - set(KEYS)):
        raise RecordError("key", f"unknown key {unknown[0]!r}", f"the keys are {', '.join(KEYS)}", place)
    text = record.get("question", prompt)
    if not isinstance(text, str) or not text.strip():
        raise RecordError("question", "no question", "write one, or give --prompt for lines without", place)
    if "image" in record and "images" in record:
        raise RecordError("image", "both 'image' and 'images'", "write one of the two", place)
    names = record.get("images", record.get("image"))
    names = [] if names is None else names if isinstance(names, list) else [names]
    name = record.get("id", f"line {number}")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise RecordError("id", f"id {name!r} is no text or number", "correct it, or leave it out", place)
    return Question(str(name), text, tuple(names), tuple(folder.resolve(image) for image in names))
