"""What the checker keeps of each usable record: about 140 bytes, however long it is, in three tables.

records   one row per record: tokens, tiles, turns, script, hashes of its texts
answers   one row per answer: its length, hashes of the answer and of its first words
images    one row per image: hashes of name and pixels, its looks, its size and tiles; of a video the first frame
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ...hub.constants import IGNORE_INDEX
from ..plan.lengths import FATES
from .looking import Seen, SeenImage
from .texts import hash_text, is_refusal, is_repetitive, normalize, opening_of, script_code, words_of

RECORD = np.dtype(
    [
        *((name, "i4") for name in ("row", "tokens", "supervised", "tiles", "turns", "width", "height")),
        *((name, "u1") for name in ("script", "fate")),
        *((name, "u8") for name in ("text", "whole")),
    ]
)
ANSWER = np.dtype(
    [("row", "i4"), ("turn", "i4"), ("words", "i4"), ("flags", "u1"), ("answer", "u8"), ("opening", "u8")]
)
IMAGE = np.dtype(
    [
        *((name, "i4") for name in ("row", "width", "height", "tiles")),
        *((name, "u8") for name in ("name", "pixels", "across", "down", "mirrored_across", "mirrored_down")),
    ]
)
TABLES = {"records": RECORD, "answers": ANSWER, "images": IMAGE}
REFUSES, REPEATS = 1, 2  # bits of an answer's flags


class Facts:
    """The three tables, collected part by part."""

    def __init__(self):
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in TABLES}

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Append rows of each table."""
        for name, array in rows.items():
            self._parts[name].append(array)

    def table(self, name: str) -> np.ndarray:
        """A table of all that was added."""
        parts = self._parts[name]
        if len(parts) != 1:
            parts[:] = [np.concatenate(parts) if parts else np.zeros(0, TABLES[name])]
        return parts[0]

    records = property(lambda self: self.table("records"))
    answers = property(lambda self: self.table("answers"))
    images = property(lambda self: self.table("images"))


def gather(rows: Iterable[tuple[int, Seen]]) -> dict[str, np.ndarray]:
    """The tables of some records, given with their rows in the file; their images with facts."""
    lists: dict[str, list[tuple]] = {name: [] for name in TABLES}
    for row, seen in rows:
        note(row, seen, lists)
    return {name: np.array(lists[name], kind) for name, kind in TABLES.items()}


def note(row: int, seen: Seen, lists: dict[str, list[tuple]]) -> None:
    """Append what is kept of one record to the lists of the three tables."""
    images = [(row, *_image(each)) for each in seen.images if each.facts is not None]
    texts = [turn.text for turn in seen.record.turns]
    text = "\n".join(map(normalize, texts))
    pixels = "".join(str(image[5]) for image in images)
    labels = seen.sample["labels"]
    first = next((each.size for each in seen.images if each.kind == "image"), (0, 0))
    measures = len(labels), int((labels != IGNORE_INDEX).sum()), seen.sample["num_tiles"], len(texts), *first
    codes = script_code(" ".join(texts)), FATES.index(seen.sample["fate"])
    lists["records"].append((row, *measures, *codes, hash_text(text), hash_text(text + pixels)))
    lists["answers"] += [
        (row, place, *answer_facts(turn.text))
        for place, turn in enumerate(seen.record.turns)
        if turn.role == "assistant" and turn.text.strip()
    ]
    lists["images"] += images


def answer_facts(text: str) -> tuple[int, int, int, int]:
    """Words, flags, and the hashes of an answer and of its first words."""
    words = words_of(text)
    flags = REFUSES * is_refusal(text) + REPEATS * is_repetitive(words)
    return len(words), flags, hash_text(normalize(text)), hash_text(opening_of(text))


def _image(seen: SeenImage) -> tuple[int, ...]:
    facts = seen.facts
    return facts.width, facts.height, seen.grid.num_tiles, hash_text(seen.name), *facts[2:]


def joined(tables: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tables of several files behind each other, and the number of the file of each row."""
    numbers = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return np.concatenate(tables), numbers
