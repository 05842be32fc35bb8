"""Questions from files and folders: JSON lines of one's own, training records, VLMEvalKit's TSV, images of a folder.

A line of one's own::

    {"id": "r-17", "image": "receipt.jpg", "question": "What is the total?", "answer": "12.80"}
    {"id": "r-18", "images": ["a.jpg", "b.jpg"], "question": "Which is older?", "choices": ["the first", "the second"],
     "answer": "A", "category": "order", "group": "pair 9"}

VLMEvalKit's columns, empty cells left out::

    index  image  question  [hint]  [A  B  C  D ...]  answer  [category]  [image_path]  [split]  [group]
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..datasets.images.media import ImageFolder
from ..datasets.records.json_index import open_index
from ..datasets.records.records import clean
from ..datasets.records.tables import write_image
from ..errors import DataError, RecordError, SettingError
from ..files import get_cache_dir, text_hash
from ..inference.questions import Question, Unusable
from .items import Item
from .metrics import Metric, by_group, find_metric

IMAGES = "benchmark_images"  # in the cache folder: images that TSV files hold, under names made from their content
MAX_CELL = 128 * 2**20  # bytes of a cell: an image of 96 MiB in base64
LONGEST_REFERENCE = 64  # VLMEvalKit's rule: a shorter image cell is the index of the row that holds the image
ROTATION = 1_000_000  # MMBench numbers the rotations of question 7 as 1000007, 2000007, ...
FIELDS = ("question", "hint", "choices")
FACTS = ("category", "group", "width", "height", "frame", "answer_frame")
KEYS = ("id", "image", "images", "question", "answer", "answers", "choices", "hint", *FACTS)
TURNS = "conversations"
_HAN = re.compile("[\u4e00-\u9fff]")
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "{hint}\n{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
_LETTER_ZH = "{hint}\n{question}\n{choices}\n请直接回答选项字母。"
OWN = "{hint}\n{question}\n{choices}"
TEXT = "text"  # names the questions without images that every instruct model answers; they show what was forgotten
TEXT_FILE = Path(__file__).with_name("text.jsonl")
# How names of VLMEvalKit's files begin: metric and prompt. Prompts are those of OpenGVLab/InternVL
# (internvl_chat/eval/*/evaluate_*.py), for AI2D and MMStar those of VLMEvalKit's wrapper (vlmeval/vlm/internvl/).
STEMS: dict[tuple[str, ...], tuple[str, str]] = {
    ("mmbench", "ccbench", "mmstar", "ai2d", "scienceqa"): ("multiple_choice", _LETTER),
    ("pope",): ("yes_no", "{question}\n" + _SHORT),
    ("textvqa",): ("vqa_accuracy", "{question} " + _SHORT),
    ("docvqa",): ("anls", "{question} " + _SHORT),
    ("chartqa",): ("relaxed_accuracy", "{question} " + _SHORT),
}


@dataclass
class DataSet:
    """A file's questions with what measures them.

    Attributes:
        name: Stem of the file, or name of the folder.
        path: The file or folder.
        metric: Of all its questions; None where the file has no answers.
        items: Those that can be asked and measured.
        left_out: What can't, and why; grows while images are opened.
        hash: Of what the file asks and expects, whatever the limit.
    """

    name: str
    path: str
    metric: Metric | None
    items: Sequence[Item]
    left_out: list[Unusable] = field(default_factory=list)
    hash: str = ""

    def asked(self, item: Item) -> Question:
        """The question under a name that no other data set has."""
        return replace(item.question, id=f"{self.name}/{item.question.id}")


def open_data_sets(
    paths: str | Sequence[str],
    *,
    metric: str | None = None,
    prompt: str | None = None,
    images: str | None = None,
    limit: int | None = None,
) -> list[DataSet]:
    """Reads files of questions, and folders of images.

    Args:
        paths: The file or folder, or several; their names are those of the data sets. `text` is the built-in file of
            short questions in English and Chinese, which keeps its metric and its prompt.
        metric: Measures all other files; None takes each benchmark's own.
        prompt: With `{question}` (also `{hint}` and `{choices}`) the text around each question, else the question of
            images and lines that have none.
        images: Folder of the files' images; None takes that of each file.
        limit: About so many questions of each; those that count together stay together.

    Raises:
        SettingError: A file, metric or prompt that can't be used, or two files of the same name.
        RecordError: A broken JSON array.
    """
    found: dict[str, DataSet] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        if path == TEXT:
            read = _open(TEXT_FILE, "mentions", None, None)
        else:
            read = _open(Path(path), metric, prompt, images)
        if read.name in found:
            problem = f"{found[read.name].path} and {path} have the same name, {read.name!r}"
            raise SettingError("data", problem, "rename one of them")
        read.hash = items_hash(read.items)
        read.items = first_groups(read.items, limit or len(read.items))
        found[read.name] = read
    return list(found.values())


def items_hash(items: Sequence[Item]) -> str:
    """Of what is asked and expected, and of the names of the images."""
    facts = [(i.question.id, i.question.text, i.question.images, i.expected, dict(i.facts)) for i in items]
    return text_hash(json.dumps(facts, ensure_ascii=False, sort_keys=True))


def first_groups(items: Sequence[Item], limit: int) -> list[Item]:
    """The first groups that make up `limit` items or more, in the items' order."""
    taken: set[int] = set()
    for group in by_group(items):
        if len(taken) >= limit:
            break
        taken.update(group)
    return [item for position, item in enumerate(items) if position in taken]


@dataclass
class _Draft:
    """An item before its prompt and its images are known; `paths` are those of images that were written out."""

    id: str
    question: str
    answers: Sequence[str]
    images: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    paths: Sequence[str] = ()


def _open(path: Path, metric: str | None, prompt: str | None, images: str | None) -> DataSet:
    known, template = None, OWN
    if not path.exists():
        raise SettingError("data", f"{path} isn't there", "correct the path")
    if path.is_dir():
        folder, rows = ImageFolder(path), _in_folder(path)
    elif path.suffix.lower() == ".tsv":
        named = (row for stems, row in STEMS.items() if path.stem.lower().startswith(stems))
        known, template = next(named, (None, OWN))
        folder, rows = ImageFolder(images or path.parent), _in_tsv(path)
    elif path.suffix.lower() in (".jsonl", ".json"):
        folder, rows = ImageFolder(images, path.parent), _in_lines(path)
    else:
        raise SettingError("data", f"{path} is neither .tsv nor .jsonl nor a folder", "name a file of questions")
    found = list(rows)
    drafts = [draft for _, draft in found if isinstance(draft, _Draft)]
    if prompt and "{question}" not in prompt:
        if all(draft.question for draft in drafts):
            told = "write {question} where the question belongs"
            raise SettingError("prompt", f"the prompt {prompt[:80]!r} has no {{question}}", told)
        for draft in drafts:
            draft.question = draft.question or prompt
    elif prompt:
        template = prompt
    if any(draft.answers for draft in drafts):
        chosen = "multiple_choice" if all(draft.choices for draft in drafts) else "exact_match"
        measure = find_metric(metric or known or chosen)
    else:
        measure = None
    return _build(path, found, template, folder, measure)


def _build(
    path: Path, found: list[tuple[str, _Draft | DataError]], template: str, folder: ImageFolder, measure: Metric | None
) -> DataSet:
    """The data set of drafts and complaints with their places."""
    data_set, seen = DataSet(path.stem if path.is_file() else path.name, str(path), measure, []), set()
    for place, draft in found:
        try:
            if isinstance(draft, DataError):
                raise draft
            item = _item(draft, template, folder, place)
            if measure is not None:
                measure.check(item)
            if item.question.id in seen:
                raise RecordError("id", f"id {item.question.id!r} was used before", "give each its own", place)
        except DataError as error:
            said = str(error)
            data_set.left_out.append(Unusable(place, said if place in said else f"{place}: {said}"))
            continue
        seen.add(item.question.id)
        data_set.items.append(item)
    if not data_set.items:
        first = f"; the first: {data_set.left_out[0].message}" if found else ""
        told = "correct the file" if path.is_file() else "name a folder of images"
        raise SettingError("data", f"{path}: none of its {len(found)} questions can be used{first}", told)
    return data_set


def _item(draft: _Draft, template: str, folder: ImageFolder, place: str) -> Item:
    """The item.

    Raises:
        DataError: No question, or an image that can't be named or isn't there.
    """
    if not draft.question.strip():
        raise RecordError("question", "no 'question'", "every row needs one, or give --prompt", place)
    choices = "\n".join(f"{letter}. {text}" for letter, text in draft.choices.items())
    values = {"question": draft.question, "hint": draft.hint, "choices": choices}
    text = fill(_LETTER_ZH if template == _LETTER and _HAN.search("".join(values.values())) else template, values)
    clean(text, "the question", place)
    paths = [*draft.paths, *(_find(name, folder, place) for name in draft.images)]
    names = [os.path.basename(path) for path in draft.paths] + list(draft.images)
    facts = ({"choices": dict(draft.choices)} if draft.choices else {}) | draft.facts
    question = Question(draft.id or f"line {place.rpartition(':')[2]}", text, tuple(names), tuple(paths))
    return Item(question, tuple(draft.answers), facts, place)


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """The prompt with its fields; lines whose fields are all empty are left out, and no suffix is written twice."""
    lines = []
    for line in prompt.split("\n"):
        names = [name for name in FIELDS if f"{{{name}}}" in line]
        if names and not any(values[name] for name in names):
            continue
        for name in names:
            line = line.replace(f"{{{name}}}", values[name])
        lines.append(line)
    text, question = "\n".join(lines), values["question"].rstrip()
    suffix = prompt.split("{question}")[-1].strip()
    return question if suffix and question.endswith(suffix) and text.startswith(question) else text


def _find(name: str, folder: ImageFolder, place: str) -> str:
    """The path of an image: of a file that isn't there also without leading folders, which downloads often lack."""
    path = folder.resolve(name)
    parts = PurePosixPath(name).parts if not os.path.isfile(path) else ()
    for start in range(1, len(parts)):
        if os.path.isfile(found := folder.resolve("/".join(parts[start:]))):
            return found
    if not os.path.isfile(path):
        raise RecordError("image_missing", f"image {path!r} isn't there", "give the image folder", place)
    return path


def _in_folder(folder: Path) -> Iterator[tuple[str, _Draft]]:
    """A question about each image below a folder, in the order of their names; hidden ones are passed over."""
    from PIL import Image

    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*")):
        if path.suffix.lower() in readable and not any(part.startswith(".") for part in path.parts):
            yield str(folder / path), _Draft(path.as_posix(), "", (), [path.as_posix()])


def _in_lines(path: Path) -> Iterator[tuple[str, _Draft | DataError]]:
    """A draft, or what is wrong, for each JSON line that isn't empty, or each record of a JSON array."""
    records = open_index(str(path))
    for row in range(len(records)):
        place = records.source(row)
        try:
            yield place, _own(records.parse(row), place)
        except RecordError as error:
            yield place, error


def _own(values: object, place: str) -> _Draft:
    """A line of one's own, or a training record of a single turn."""
    if not isinstance(values, dict):
        raise RecordError("record", "not an object", 'write {"image": ..., "question": ...}', place)
    values = _of_training(values, place) if TURNS in values else values
    if unknown := sorted(values.keys() - set(KEYS)):
        raise RecordError("key", f"unknown key {unknown[0]!r}", f"the keys are {', '.join(KEYS)}", place)
    for one, many in (("image", "images"), ("answer", "answers")):
        if one in values and many in values:
            raise RecordError(one, f"both {one!r} and {many!r}", "write one of the two", place)
    choices = _choices(values.get("choices"), place)
    names, hint, question = (_texts(values, key, place) for key in ("id", "hint", "question"))
    return _Draft(
        "".join(names),
        "".join(question),
        [_letter(each, choices) for key in ("answers", "answer") for each in _texts(values, key, place)],
        [each for key in ("images", "image") for each in _texts(values, key, place)],
        choices,
        "".join(hint),
        {key: values[key] for key in FACTS if values.get(key) is not None},
    )


def _of_training(values: dict[str, Any], place: str) -> dict[str, Any]:
    """A record of the training form as a line of one's own."""
    turns = values[TURNS]
    known = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    said = [turn.get("value") for turn in turns if turn.get("from") != "system"] if known else []
    if len(said) != 2 or not all(isinstance(text, str) for text in said):
        problem = f"{TURNS!r} is not one question with its answer"
        raise RecordError(TURNS, problem, "only records of a single turn can be evaluated", place)
    images = _texts(values, "image", place)
    question = re.sub(r"\s*<image>\s*", " ", said[0]).strip() if len(images) <= 1 else said[0]
    kept = {"id": values["id"]} if "id" in values else {}
    return {**kept, "images": images, "question": question, "answer": said[1]}


def _texts(values: Mapping[str, Any], key: str, place: str) -> list[str]:
    """A list of texts, or one text, of a row; [] where the key is missing."""
    value = values.get(key)
    found = value if isinstance(value, list) and key != "id" else [] if value is None else [value]
    if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in found):
        raise RecordError(key, f"{key!r} is no text and no list of texts", "correct it", place)
    return [str(one) for one in found]


def _choices(value: object, place: str) -> dict[str, str]:
    """Choices as letter to text, from a list or an object; {} for None."""
    if isinstance(value, list) and 0 < len(value) <= len(string.ascii_uppercase):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if value is not None and (not isinstance(value, dict) or not value or value.keys() - set(string.ascii_uppercase)):
        problem = "'choices' is no list of up to 26 and no object of letters"
        raise RecordError("choices", problem, 'write ["red", "blue"]', place)
    return {letter: str(text) for letter, text in (value or {}).items()}


def _letter(answer: str, choices: Mapping[str, str]) -> str:
    """The letter of an answer that is the text of exactly one choice; other answers as they are."""
    same = [letter for letter, text in choices.items() if text.strip().lower() == answer.strip().lower()]
    return same[0] if len(same) == 1 and answer not in choices else answer


def _in_tsv(path: Path) -> Iterator[tuple[str, _Draft | DataError]]:
    """A draft, or what is wrong, for each row; images in base64 are written into the cache."""
    written: dict[str, str] = {}  # path of the image that the row with an index holds
    waiting = []  # rows whose image another row holds
    for place, cells in _rows(path):
        try:
            if isinstance(cells, DataError):
                raise cells
            draft, index, cell = _of_row(cells, path, place), cells.get("index", ""), cells.get("image", "")
            if len(cell) > LONGEST_REFERENCE:
                draft.paths = [_write(cell, place)]
                written.setdefault(index, draft.paths[0])
            elif not cell and "image_path" not in cells:
                raise RecordError("image", "no image", "every row needs one", place)
        except RecordError as error:
            yield place, error
            continue
        if cell and not draft.paths:
            waiting.append((place, draft, cell))
        else:
            draft.images = [] if cell else [cells["image_path"]]
            yield place, draft
    for place, draft, cell in waiting:
        draft.paths, draft.images = ([written[cell]], []) if cell in written else ([], [cell])  # else a file's name
        yield place, draft


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str] | DataError]]:
    """The rows of a TSV file with a header, and their places; cells may be quoted and hold line breaks."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = next(reader, [])
            _check_header(path, header)
            line = reader.line_num
            for cells in reader:
                place, line = f"{path}:{line + 1}", reader.line_num
                if cells and len(cells) != len(header):
                    problem = f"{len(cells)} cells, and {len(header)} columns in the header"
                    remedy = "quote cells that hold tabs or quotation marks"
                    yield place, RecordError("columns", problem, remedy, place)
                elif cells:
                    yield place, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingError("file", f"{path} can't be read as TSV ({error})", "save it as UTF-8 with tabs") from None


def _check_header(path: Path, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        raise SettingError("file", f"{path}: two columns have one name", "rename one of them")
    for name in ("question", "answer"):
        if name not in columns:
            hint = "; answers of test splits aren't published, take the dev or val split" if name == "answer" else ""
            shown = f"its columns are {', '.join(columns[:12])}{hint}"
            raise SettingError("file", f"{path} has no column {name!r}", shown)
    if not {"image", "image_path"} & set(columns):
        raise SettingError("file", f"{path} has no column 'image' or 'image_path'", "name one of them so")


def _of_row(cells: Mapping[str, str], path: Path, place: str) -> _Draft:
    """The draft of a row, without its image."""
    if "answer" not in cells:
        raise RecordError("answer", "no 'answer'", "every row needs one", place)
    index, category = cells.get("index", ""), cells.get("category") or cells.get("split")
    choices = {letter: cells[letter] for letter in string.ascii_uppercase if letter in cells}
    facts: dict[str, Any] = {"category": category} if category else {}
    if "group" in cells:
        facts["group"] = cells["group"]
    elif path.stem.lower().startswith(("mmbench", "ccbench")) and index.isdigit():
        facts["group"] = str(int(index) % ROTATION)
    elif path.stem.lower().startswith("pope") and category:
        facts["category"] = [part.strip() for part in category.split(",")]
    answers = [_letter(answer, choices) for answer in _answers(cells["answer"])]
    return _Draft(index, cells.get("question", ""), answers, choices=choices, hint=cells.get("hint", ""), facts=facts)


def _answers(cell: str) -> Iterable[str]:
    """The answers of a cell: a list as Python prints it, or the text itself."""
    try:
        found = ast.literal_eval(cell) if cell.startswith("[") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    is_list = isinstance(found, list) and found and all(isinstance(one, (str, int, float)) for one in found)
    return map(str, found) if is_list else [cell]


def _write(cell: str, place: str) -> str:
    """The path of an image in base64, after it has been written."""
    try:
        data = base64.b64decode("".join(cell.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RecordError("image", "its image isn't base64", "download the file again", place) from None
    folder = get_cache_dir() / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / write_image(data, folder, place))
