"""The files of benchmarks as their authors publish them: one function per layout turns a record into a draft."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...datasets.errors import DataError, RecordError, SettingError
from ..metrics.mme import CATEGORIES
from .files import Row, array_rows, read_json, read_json_lines
from .item_draft import Draft, lettered, shortened, text_of, texts_of

Drafts = Iterator[tuple[str, Draft | DataError]]
_POPE = re.compile("random|popular|adversarial")
_CHARTQA = re.compile("human|augmented")
CONVERTED_ID = "question_id"  # a key of converted files alone
_IMAGE_ENDINGS = ("jpg", "png", "jpeg")


def _each(rows: Iterator[Row], convert: Callable[..., Draft], *more: object) -> Drafts:
    for row in rows:
        try:
            yield row.place, row.error or convert(row.values, row.place, *more)
        except RecordError as error:
            yield row.place, error


def converted(path: Path) -> Drafts:
    """{"question_id", "image", "question", "answer"} per line: TextVQA, DocVQA, ChartQA as converted for Qwen-VL."""
    return _each(read_json_lines(path), _converted, _in_name(_CHARTQA, path))


def _converted(values: dict[str, Any], place: str, facts: dict[str, str]) -> Draft:
    return Draft(
        "/".join([*facts.values(), text_of(values, CONVERTED_ID, place)]),
        text_of(values, "question", place),
        texts_of(values, "answer", place),
        [shortened(text_of(values, "image", place))],
        facts=facts,
    )


def _in_name(pattern: re.Pattern, path: Path) -> dict[str, str]:
    """The category that a file's name says."""
    found = pattern.search(path.stem)
    return {"category": found[0]} if found else {}


def refcoco(path: Path) -> Drafts:
    """{"image", "sent", "bbox": [x1, y1, x2, y2] in pixels, "width", "height"}, converted by Qwen-VL's authors."""
    return _each(read_json_lines(path), _refcoco)


def _refcoco(values: dict[str, Any], place: str) -> Draft:
    box = values.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise RecordError("bbox", f"'bbox' is {str(box)[:60]}", "write [x1, y1, x2, y2] in pixels", place)
    sides = [values.get(side) for side in ("width", "height")]
    if not all(type(side) in (int, float) and side > 0 for side in sides):
        raise RecordError("size", "no size of the image", "give 'width' and 'height' in pixels", place)
    return Draft(
        "",
        text_of(values, "sent", place),
        [json.dumps(box)],
        [shortened(text_of(values, "image", place))],
        facts={"frame": "pixel", "width": sides[0], "height": sides[1]},
    )


def pope(path: Path) -> Drafts:
    """{"question_id", "image", "text", "label"} per line (coco_pope_random.json, ...); a folder: all of its files."""
    for file in sorted(path.glob("*pope*.json")) if path.is_dir() else [path]:
        yield from _each(read_json_lines(file), _pope, _in_name(_POPE, file))


def _pope(values: dict[str, Any], place: str, facts: dict[str, str]) -> Draft:
    number = text_of(values, "question_id", place)
    return Draft(
        "/".join([*facts.values(), number]),
        text_of(values, "text", place),
        [text_of(values, "label", place)],
        [shortened(text_of(values, "image", place))],
        facts=facts,
    )


def textvqa(path: Path) -> Drafts:
    """{"data": [{"question_id", "image_id", "question", "answers": ten}]} (TextVQA_0.5.1_val.json)."""
    return _each(array_rows(path, read_json(path)["data"]), _textvqa)


def _textvqa(values: dict[str, Any], place: str) -> Draft:
    image = text_of(values, "image_id", place) + ".jpg"
    return Draft(
        text_of(values, "question_id", place),
        text_of(values, "question", place),
        texts_of(values, "answers", place),
        [[image, f"train_images/{image}"]],
    )


def docvqa(path: Path) -> Drafts:
    """{"data": [{"questionId", "image": "documents/...", "question", "answers"}]} (val_v1.0.json, ..._withQT.json)."""
    return _each(array_rows(path, read_json(path)["data"]), _docvqa)


def _docvqa(values: dict[str, Any], place: str) -> Draft:
    kinds = texts_of(values, "question_types", place)
    return Draft(
        text_of(values, "questionId", place),
        text_of(values, "question", place),
        texts_of(values, "answers", place),
        [shortened(text_of(values, "image", place))],
        facts={"category": kinds} if kinds else {},
    )


def chartqa(path: Path) -> Drafts:
    """[{"imgname", "query", "label"}] (test_human.json, test_augmented.json); a folder: both."""
    for file in sorted(path.glob("test_*.json")) if path.is_dir() else [path]:
        yield from _each(array_rows(file, read_json(file)), _chartqa, _in_name(_CHARTQA, file))


def _chartqa(values: dict[str, Any], place: str, facts: dict[str, str]) -> Draft:
    image, entry = text_of(values, "imgname", place), place.rpartition(" ")[2]
    return Draft(
        "/".join([*facts.values(), entry]),
        text_of(values, "query", place),
        texts_of(values, "label", place),
        [[image, f"png/{image}", f"test/png/{image}"]],
        facts=facts,
    )


def ocrbench(path: Path) -> Drafts:
    """[{"image_path", "question", "answers", "type"}] (OCRBench.json)."""
    return _each(array_rows(path, read_json(path)), _ocrbench)


def _ocrbench(values: dict[str, Any], place: str) -> Draft:
    image = text_of(values, "image_path", place)
    return Draft(
        "",
        text_of(values, "question", place),
        texts_of(values, "answers", place),
        [[*shortened(image), f"OCRBench_Images/{image}"]],
        facts={"category": text_of(values, "type", place)},
    )


def scienceqa(path: Path) -> Drafts:
    """{"1": {"question", "choices", "answer": 0, "image", "split", ...}} (problems.json): the test split with image."""
    rows = (Row(f"{path}: entry {key}", value) for key, value in read_json(path).items() if isinstance(value, dict))
    return _each((row for row in rows if row.values.get("split") == "test" and row.values.get("image")), _problem)


def _problem(values: dict[str, Any], place: str) -> Draft:
    number = place.rpartition(" ")[2]
    image = f"{number}/{text_of(values, 'image', place)}"
    return _choice(values, place, number, [image, f"test/{image}", f"images/test/{image}"])


def scienceqa_lines(path: Path) -> Drafts:
    """{"image", "question", "choices", "answer": 0, "hint"} per line, converted by Qwen-VL's authors."""
    return _each(
        read_json_lines(path),
        lambda values, place: _choice(values, place, "", shortened(text_of(values, "image", place))),
    )


def _choice(values: dict[str, Any], place: str, name: str, images: list[str]) -> Draft:
    choices, answer = lettered(texts_of(values, "choices", place), place), values.get("answer")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise RecordError("answer", f"the answer {answer!r} is the index of no choice", "it counts from 0", place)
    return Draft(
        name,
        text_of(values, "question", place),
        [list(choices)[answer]],
        [images],
        choices=choices,
        hint="".join(texts_of(values, "hint", place)),
        facts={"category": values["subject"]} if values.get("subject") else {},
    )


def mme(path: Path) -> Drafts:
    """Lines of image, question and answer with tabs between, a file per category (eval_tool/Your_Results)."""
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        for number, line in _text_lines(file):
            yield _mme(line, f"{file}:{number}", file.stem, number)


def mme_release(path: Path) -> Drafts:
    """A folder per category, with a text per image: lines of question and answer (MME_Benchmark_release_version)."""
    for category in CATEGORIES:
        for file in sorted((path / category).rglob("*.txt")):
            names = [f"{category}/{folder}{file.stem}.{end}" for folder in ("", "images/") for end in _IMAGE_ENDINGS]
            for number, line in _text_lines(file):
                yield _mme_question(line, f"{file}:{number}", f"{category}/{file.stem}", number, category, names)


def _mme_question(
    line: str, place: str, image: str, number: int, category: str, names: list[str]
) -> tuple[str, Draft | DataError]:
    question, tab, answer = line.partition("\t")
    if not tab:
        return place, RecordError("columns", "no tab", "write question and answer, a tab between", place)
    facts = {"category": category, "group": image}
    return place, Draft(f"{image}/{number}", question.strip(), [answer.strip()], [names], facts=facts)


def _text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that aren't empty, counted from 1."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SettingError("file", f"{file} is not UTF-8 ({error})", "download it again") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _mme(line: str, place: str, category: str, number: int) -> tuple[str, Draft | DataError]:
    cells = line.split("\t")
    if len(cells) < 3:
        return place, RecordError("columns", f"{len(cells)} cells", "image, question and answer, tabs between", place)
    image, question, answer = cells[:3]
    names = [f"{category}/{image}", f"{category}/images/{image}", image]
    facts = {"category": category, "group": f"{category}/{image}"}
    return place, Draft(f"{category}/{number}", question.strip(), [answer.strip()], [names], facts=facts)
