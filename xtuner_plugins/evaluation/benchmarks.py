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
import csv
import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..datasets.images.media import ImageFolder, image_size
from ..datasets.records.boxes import normalize_boxes
from ..datasets.records.foreign import KEYS as TRAINING
from ..datasets.records.json_index import open_index
from ..datasets.records.records import IMAGE, clean, parse_record
from ..datasets.records.tables import write_image
from ..errors import DataError, RecordError, SettingError
from ..files import get_cache_dir, text_hash
from ..inference.questions import Question, Unusable
from .metrics import Metric, by_group, find_metric

IMAGES = "benchmark_images"  # in the cache folder: those that TSV files hold
MAX_CELL = 128 * 2**20  # bytes of a cell: an image of 96 MiB in base64
BRIEF = 64  # characters of a right answer; where none has more, an answer of 128 tokens is long enough
LONGEST_REFERENCE = 64  # VLMEvalKit's rule: a shorter image cell is the index of the row that holds the image
ROTATION = 1_000_000  # MMBench numbers the rotations of question 7 as 1000007, 2000007, ...
FACTS = ("category", "group")
KEYS = ("id", "image", "images", "question", "answer", "answers", "choices", "hint", *FACTS)
WRITTEN = "written"  # of a TSV's row: the path of its image in the cache, whose name is made from its content
_FIELD = re.compile(r"\{(question|hint|choices)\}")
_HAN = re.compile("[\u4e00-\u9fff]")
_SHORT = "Answer the question using a single word or phrase."
OWN = "{hint}\n{question}\n{choices}"
_LETTER = f"{OWN}\nAnswer with the option's letter from the given choices directly."
_LETTER_ZH = f"{OWN}\n请直接回答选项字母。"
TEXT = "text"  # names the questions without images that every instruct model answers; they show what was forgotten
TEXT_FILE = Path(__file__).with_name("text.jsonl")
# How names of VLMEvalKit's files begin: metric and prompt. Prompts are those of OpenGVLab/InternVL
# (internvl_chat/eval/*/evaluate_*.py), for AI2D and MMStar those of VLMEvalKit's wrapper (vlmeval/vlm/internvl/).
STEMS: dict[tuple[str, ...], tuple[str | None, str]] = {
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
        questions: Those that can be asked and measured.
        left_out: What can't, and why; grows while images are opened.
        hash: Of what the file asks and expects, whatever the limit.
        longest_answer: Tokens that an answer may have, whatever the limit.
    """

    name: str
    path: str
    metric: Metric | None
    questions: Sequence[Question]
    left_out: list[Unusable] = field(default_factory=list)
    hash: str = ""
    longest_answer: int = 512

    def asked(self, question: Question) -> Question:
        """The question under a name that no other data set has."""
        return replace(question, id=f"{self.name}/{question.id}")


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
        read = _open(TEXT_FILE, "mentions", None, None) if path == TEXT else _open(Path(path), metric, prompt, images)
        if read.name in found:
            problem = f"{found[read.name].path} and {path} have the same name, {read.name!r}"
            raise SettingError("data", problem, "rename one of them")
        facts = [(each.id, each.text, each.images, each.expected, each.facts) for each in read.questions]
        read.hash = text_hash(json.dumps(facts, ensure_ascii=False, sort_keys=True))
        if all(each.expected and max(map(len, each.expected)) <= BRIEF for each in read.questions):
            read.longest_answer = 128
        taken: set[int] = set()
        for group in by_group(read.questions):
            taken.update(group if len(taken) < (limit or len(read.questions)) else ())
        read.questions = [read.questions[position] for position in sorted(taken)]
        found[read.name] = read
    return list(found.values())


Rows = Iterable[tuple[str, "dict[str, Any] | DataError"]]  # the place of each, and the row or what is wrong with it


def _open(path: Path, metric: str | None, prompt: str | None, images: str | None) -> DataSet:
    name, kind = (path.name, "/") if path.is_dir() else (path.stem, path.suffix.lower())
    readers = {"/": _in_folder, ".tsv": _in_tsv, ".jsonl": _in_lines, ".json": _in_lines}
    if not path.exists():
        raise SettingError("data", f"{path} isn't there", "correct the path")
    if kind not in readers:
        raise SettingError("data", f"{path} is neither .tsv nor .jsonl nor a folder", "name a file of questions")
    known, template, own = None, OWN, {"/": path, ".tsv": path.parent}.get(kind)
    if kind == ".tsv":
        known, template = next((row for stems, row in STEMS.items() if name.lower().startswith(stems)), (None, OWN))
    folder = ImageFolder(own if kind == "/" else images or own, path.parent)
    found = list(readers[kind](path) if kind in ("/", ".tsv") else _in_lines(path, folder))
    rows = [row for _, row in found if isinstance(row, dict)]
    if prompt and "{question}" in prompt:
        template, prompt = prompt, None
    elif prompt and found and all(row.get("question") for row in rows):
        told = "write {question} where the question belongs"
        raise SettingError("prompt", f"the prompt {prompt[:80]!r} has no {{question}}", told)
    has_answers = any(row.get(key) not in (None, []) for row in rows for key in ("answer", "answers"))
    chosen = "multiple_choice" if all(row.get("choices") for row in rows) else "exact_match"
    measure, left_out = find_metric(metric or known or chosen) if has_answers else None, []
    questions: dict[str, Question] = {}
    for place, row in found:
        try:
            question = _question(row, prompt or "", template, folder, place)
            if measure is not None and (problem := measure.problem(question)):
                raise RecordError("answer", *problem, f"{place} ({question.id})")
            if question.id in questions:
                raise RecordError("id", f"id {question.id!r} was used before", "give each its own", place)
            questions[question.id] = question
        except DataError as error:
            said = str(error)
            left_out.append(Unusable(place, said if place in said else f"{place}: {said}"))
    if not questions:
        told = f"none of its {len(found)} questions can be used; the first: {left_out[0].message}" if found else ""
        raise SettingError("data", f"{path}: {told or 'it holds no images and no questions'}", "correct it")
    return DataSet(name, str(path), measure, list(questions.values()), left_out)


def _question(
    row: dict[str, Any] | DataError, default: str, template: str, folder: ImageFolder, place: str
) -> Question:
    """The question of a row of one's own; `default` is asked where it has none.

    Raises:
        DataError: What is wrong with the row.
    """
    if isinstance(row, DataError):
        raise row
    choices = _choices(row.get("choices"), place)
    values = {key: "".join(_texts(row, key, place)) for key in ("id", "hint", "question")}
    values["question"] = values["question"] or default
    if not values["question"].strip():
        raise RecordError("question", "no 'question'", "every row needs one, or give --prompt", place)
    values["choices"] = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
    text = clean(fill(template, values), "the question", place)
    names = [each for key in ("images", "image") for each in _texts(row, key, place)]
    paths = [folder.resolve(name) for name in names]
    if gone := [path for path in paths if not os.path.isfile(path)]:
        remedy = "give the image folder (--images, or val_benchmark_images of a run)"
        raise RecordError("image_missing", f"image {gone[0]!r} isn't there", remedy, place)
    if WRITTEN in row:
        names, paths = [os.path.basename(row[WRITTEN])], [row[WRITTEN]]
    answers = [_letter(each, choices) for key in ("answers", "answer") for each in _texts(row, key, place)]
    facts = ({"choices": choices} if choices else {}) | {key: row[key] for key in FACTS if row.get(key) is not None}
    name = values["id"] or f"line {place.rpartition(':')[2]}"
    return Question(name, text, tuple(names), tuple(paths), tuple(answers), facts, place)


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """The prompt with its fields; lines whose fields are all empty are left out. Han in them takes a Chinese suffix."""
    if prompt == _LETTER and _HAN.search("".join(values.values())):
        prompt = _LETTER_ZH
    lines = []
    for line in prompt.split("\n"):
        names = _FIELD.findall(line)
        if not names or any(values[name] for name in names):
            lines.append(_FIELD.sub(lambda found: values[found[1]], line))
    return "\n".join(lines)


def _texts(values: Mapping[str, Any], key: str, place: str) -> list[str]:
    """A list of texts, or one text, of a row; [] where the key is missing."""
    value = values.get(key)
    found = value if isinstance(value, list) and key != "id" else [] if value is None else [value]
    if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in found):
        raise RecordError(key, f"{key!r} is no text and no list of texts", "correct it", place)
    return [str(one) for one in found]


def _choices(value: object, place: str) -> dict[str, str]:
    """Choices as letter to text, from a list or an object; {} for None."""
    if isinstance(value, list) and len(value) <= len(string.ascii_uppercase):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if value is not None and (not isinstance(value, dict) or not value or value.keys() - set(string.ascii_uppercase)):
        problem = "'choices' is no list of up to 26 and no object of letters"
        raise RecordError("choices", problem, 'write ["red", "blue"]', place)
    return {letter: str(text) for letter, text in (value or {}).items()}


def _letter(answer: str, choices: Mapping[str, str]) -> str:
    """The letter of an answer that is the text of exactly one choice; other answers as they are."""
    same = [letter for letter, text in choices.items() if text.strip().lower() == answer.strip().lower()]
    return same[0] if len(same) == 1 and answer not in choices else answer


def _in_folder(folder: Path) -> Rows:
    """A row for each image below a folder, by name; hidden ones are passed over, HEIC is refused when it is opened."""
    from PIL import Image

    readable = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN} | {".heic", ".heif"}
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*")):
        if path.suffix.lower() in readable and not any(part.startswith(".") for part in path.parts):
            yield str(folder / path), {"id": path.as_posix(), "image": path.as_posix()}


def _in_lines(path: Path, folder: ImageFolder) -> Rows:
    """A row, or what is wrong, for each JSON line that isn't empty, or each record of a JSON array."""
    records, named = open_index(str(path)), {}
    for row in range(len(records)):
        goes_on = row > 0 and records.source(row) == records.source(row - 1)  # with the line of the record before
        place = records.source(row) + f", record {row + 1}" * goes_on
        try:
            values = records.parse(row)
            if not isinstance(values, dict):
                raise RecordError("record", "not an object", 'write {"image": ..., "question": ...}', place)
            if values.keys() & TRAINING - {"input", "history"}:
                values = _of_training(values, place, folder)
                if named.setdefault(str(values["id"]), place) != place:
                    values["id"] = None  # LLaVA's files repeat ids
            if unknown := sorted(values.keys() - set(KEYS)):
                raise RecordError("key", f"unknown key {unknown[0]!r}", f"the keys are {', '.join(KEYS)}", place)
            yield place, values
        except DataError as error:
            yield place, error


def _of_training(values: dict[str, Any], place: str, folder: ImageFolder) -> dict[str, Any]:
    """A training record as a line of one's own, which asks and expects what it trains; `DataError` where none can."""
    record = parse_record(values, place)
    names = [name for kind, name in record.media if kind == "image" and isinstance(name, str)]
    other = ["more than one question"] * (len(record.turns) > 2) + ["a system message"] * (record.system is not None)
    other += ["a video, or an image that is no file"] * (len(names) < len(record.media))
    if other := other + [f"{IMAGE} as plain text"] * (IMAGE in record.turns[0].text):
        remedy = "one question without a system message, about image files or none, can be evaluated"
        raise RecordError("training", f"{' and '.join(other)} in a training record", remedy, place)
    asked, answer = normalize_boxes(record, lambda number: image_size(folder.resolve(names[number]))).turns
    text = "".join(part if isinstance(part, str) else IMAGE for part in asked.parts)
    question = text.removeprefix(f"{IMAGE}\n" * len(names)) or text  # see `with_placeholders`
    facts = {key: values[key] for key in FACTS if key in values}
    return {"id": values.get("id"), "images": names, "question": question, "answer": answer.text, **facts}


def _in_tsv(path: Path) -> Rows:
    """A row of one's own, or what is wrong, for each row; images in base64 are written into the cache."""
    found, written = [], {}  # the path of the image that the row with an index holds
    for place, cells in _cells(path):
        try:
            row = _of_cells(cells, path.stem.lower(), place)
        except RecordError as error:
            row = error
        else:
            if WRITTEN in row:
                written.setdefault(row["id"], row[WRITTEN])
        found.append((place, row))
    for _, row in found:
        if isinstance(row, dict) and row.get("image") in written:
            row[WRITTEN] = written[row.pop("image")]
    return found


def _cells(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The cells that aren't empty of each row of a TSV file, and its place; they may be quoted and hold line breaks."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restkey="", restval="")
            columns, line = reader.fieldnames or [], reader.line_num
            missing = [name for name in ("question", "answer") if name not in columns]
            missing += ["image"] * (not {"image", "image_path"} & set(columns))
            if missing:
                shown = f"its columns are {', '.join(columns[:12])}; test splits come without answers: take dev or val"
                raise SettingError("file", f"{path} has no column {missing[0]!r}", shown)
            for cells in reader:
                place, line = f"{path}:{line + 1}", reader.line_num
                yield place, {name: cell for name, cell in cells.items() if not name or cell.strip()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingError("file", f"{path} can't be read as TSV ({error})", "save it as UTF-8 with tabs") from None


def _of_cells(cells: Mapping[str, Any], stem: str, place: str) -> dict[str, Any]:
    """The row of one's own that a TSV's cells are; a reference to another row's image stands as its `image`."""
    image = cells.get("image") or cells.get("image_path", "")
    for is_wrong, column, problem, remedy in (
        ("" in cells, "columns", "more cells than columns", "quote cells that hold tabs or quotation marks"),
        ("answer" not in cells, "answer", "no 'answer'", "every row needs one"),
        (not image, "image", "no image", "every row needs one"),
    ):
        if is_wrong:
            raise RecordError(column, problem, remedy, place)
    row = {key: cells.get(key) for key in ("question", "hint", "group")} | {"id": cells.get("index", "")}
    row |= {"category": cells.get("category") or cells.get("split"), "answers": _answers(cells["answer"])}
    row["choices"] = {letter: cells[letter] for letter in string.ascii_uppercase if letter in cells} or None
    if "group" not in cells and stem.startswith(("mmbench", "ccbench")) and row["id"].isdigit():
        row["group"] = str(int(row["id"]) % ROTATION)
    elif stem.startswith("pope") and row["category"]:
        row["category"] = [part.strip() for part in row["category"].split(",")]
    is_held = len(cells.get("image", "")) > LONGEST_REFERENCE
    return row | ({WRITTEN: _write(image, place)} if is_held else {"image": image})


def _answers(cell: str) -> list[Any]:
    """The answers of a cell: a list as Python prints it, or the text itself."""
    try:
        found = ast.literal_eval(cell) if cell.startswith("[") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    return found if isinstance(found, list) and found else [cell]


def _write(cell: str, place: str) -> str:
    """The path of an image in base64, after it has been written."""
    try:
        data = base64.b64decode("".join(cell.split()), validate=True)
    except ValueError:
        raise RecordError("image", "its image isn't base64", "download the file again", place) from None
    folder = get_cache_dir() / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / write_image(data, folder, place))
