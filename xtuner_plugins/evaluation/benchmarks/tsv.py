"""TSV files as VLMEvalKit lays them out, and one's own with the same columns.

    index  image  question  [hint]  [A  B  C  D ...]  answer  [category]  [image_path]  [split]  [group]

`image` holds the file in base64; a cell of at most 64 characters is the index of another row that holds it (rotations
of a question share an image). Without `image`, `image_path` names a file. An `answer` may be a list as Python prints
it.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...datasets.errors import DataError, RecordError, SettingError
from .embedded import EmbeddedImages, is_reference
from .files import read_tsv, tsv_columns
from .item_draft import Draft, shortened, text_of
from .own import as_letter

NEEDED = ("question", "answer")
ROTATION = 1_000_000  # MMBench numbers the rotations of question 7 as 1000007, 2000007, ...


def check_columns(path: Path) -> list[str]:
    """The columns of a TSV file.

    Raises:
        SettingError: One that every kind needs is missing.
    """
    columns = tsv_columns(path)
    for name in NEEDED:
        if name not in columns:
            hint = "; answers of test splits aren't published, take the dev or val split" if name == "answer" else ""
            raise SettingError(
                "file", f"{path} has no column {name!r}", f"its columns are {', '.join(columns[:12])}{hint}"
            )
    if "image" not in columns and "image_path" not in columns:
        raise SettingError("file", f"{path} has no column 'image' or 'image_path'", "name one of them so")
    return columns


def drafts(path: Path, kind: str, cache: str | Path | None) -> Iterator[tuple[str, Draft | DataError]]:
    """A draft, or what is wrong, for each row, with its place.

    Raises:
        SettingError: The file can't be read, or holds images and there is no cache folder.
    """
    embedded = EmbeddedImages(cache, path)
    waiting: list[tuple[str, Draft, str]] = []  # rows whose image a later row holds
    for row in read_tsv(path):
        try:
            if row.error:
                raise row.error
            draft, reference = _draft(row.values, row.place, kind, embedded)
        except RecordError as error:
            yield row.place, error
            continue
        if reference and not _refer(draft, reference, embedded):
            waiting.append((row.place, draft, reference))
        else:
            yield row.place, draft
    for place, draft, reference in waiting:
        if not _refer(draft, reference, embedded):
            draft.images = [shortened(reference)]  # no row has this index: a file's name
        yield place, draft


def _draft(values: dict[str, str], place: str, kind: str, embedded: EmbeddedImages) -> tuple[Draft, str | None]:
    """(draft, index of the row that holds its image)."""
    index = values.get("index", values.get("id"))
    choices = {letter: values[letter] for letter in string.ascii_uppercase if letter in values}
    answers = [as_letter(answer, choices) for answer in _answers(text_of(values, "answer", place))]
    draft = Draft(
        index or "", text_of(values, "question", place), answers, choices=choices, hint=values.get("hint", "")
    )
    cell, reference = values.get("image"), None
    if cell is not None and not is_reference(cell):
        draft.paths = [embedded.write(cell, index, place)]
    elif cell is not None:
        reference = cell
    elif "image_path" in values:
        draft.images = [shortened(values["image_path"])]
    else:
        raise RecordError("image", "no image", "every row needs one", place)
    draft.facts = _facts(values, kind, index)
    return draft, reference


def _refer(draft: Draft, index: str, embedded: EmbeddedImages) -> bool:
    path = embedded.of_row(index)
    draft.paths = [path] if path else []
    return path is not None


def _facts(values: dict[str, str], kind: str, index: str | None) -> dict:
    category = values.get("category") or values.get("split")
    facts: dict = {"category": category} if category else {}
    if "group" in values:
        facts["group"] = values["group"]
    elif kind == "mmbench" and index and index.isdigit():
        facts["group"] = str(int(index) % ROTATION)
    elif kind == "pope" and category:
        facts["category"] = [part.strip() for part in category.split(",")]
    return facts


def _answers(cell: str) -> Sequence[str]:
    """The answers of a cell: a list as Python prints it, or the text itself."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [cell]
    return [str(one) for one in found] if found and all(isinstance(one, (str, int, float)) for one in found) else [cell]
