"""Boxes in pixels become boxes in the 0-1000 frame that the models speak.

A record with `"boxes": "pixel"` gives its boxes in pixels of the upright image, and that image's size:

    {"image": "a.jpg", "boxes": "pixel", "width": 640, "height": 480, "conversations": [
        {"from": "human", "value": "Where is <ref>the bus</ref>?"},
        {"from": "gpt", "value": "<ref>the bus</ref><box>[[64, 48, 320, 240]]</box>"}]}

becomes `<box>[[100, 100, 500, 500]]</box>`. Without that key boxes are already in the frame, and are checked:

    error      a box that leaves the frame (pixels without the key), is inverted, or isn't closed (`<box>[`)
    warning    a box in fractions from 0 to 1; a `<box>` without numbers (XML has such a tag); `<ref>`, `<box>` or
               `<quad>`, which are tokens in training, without its other half

Boxes that ms-swift keeps beside the texts are filled in by `objects`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace

from ..errors import RecordError
from .objects import FRAME_SIZE, fill_objects
from .records import Record

BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
TAGS = ("ref", "box", "quad")
ANY_TAG = re.compile(f"</?(?:{'|'.join(TAGS)})>")


def normalize_boxes(record: Record, real_size: Callable[[int], tuple[int, int]] | None = None) -> Record:
    """The record with pixel boxes in the 0-1000 frame, and with warnings about doubtful ones.

    Args:
        real_size: gives (width, height) of the record's n-th medium, to check what the record says.

    Raises:
        RecordError: malformed boxes, boxes outside the image or the frame, or sizes that disagree.
    """
    kind = record.extra.get("boxes")
    if record.has_markup and "objects" in record.extra:
        return fill_objects(_in_frame(record, kind, real_size), real_size)
    return _in_frame(record, kind, real_size)


def _in_frame(record: Record, kind: object, real_size: Callable[[int], tuple[int, int]] | None) -> Record:
    """`normalize_boxes` of the boxes in the texts."""
    if kind is None or kind == "normalized":
        return _check_frame(record) if record.has_markup else record
    if kind != "pixel":
        _fail(record, f"'boxes' is {kind!r}", 'write "boxes": "pixel" or leave it out')
    images = [place for place, medium in enumerate(record.media) if medium.kind == "image"]
    if len(images) != 1:
        _fail(record, f"pixel boxes with {len(images)} images", "give boxes in the 0-1000 frame instead")
    width, height = (record.extra.get(key) for key in ("width", "height"))
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (width, height)):
        _fail(record, f"pixel boxes in an image of {width!r} x {height!r}", "give the image's width and height")
    if real_size is not None and real_size(images[0]) != (width, height):
        _fail(
            record,
            f"the record says {width}x{height}, the image is {{}}x{{}}".format(*real_size(images[0])),
            "correct width and height (of the upright image)",
        )
    for text in _marked_texts(record):
        _check_tags(text, record)
    turns = tuple(
        turn._replace(
            parts=tuple(
                BOX.sub(lambda match: f"<box>{_convert(match[1], width, height, record)}</box>", part)
                if isinstance(part, str)
                else part
                for part in turn.parts
            )
        )
        for turn in record.turns
    )
    return replace(record, turns=turns)


def compare_size(record: Record, size: tuple[int, int]) -> RecordError | None:
    """A warning where a record with one image states another size than the image has.

    With pixel boxes that is an error; elsewhere the record may be about another version of the image.

    Args:
        size: (width, height) of the upright image.
    """
    said = record.extra.get("width"), record.extra.get("height")
    if len(record.media) != 1 or not all(isinstance(side, int) for side in said) or said == size:
        return None
    return RecordError(
        "image_size",
        f"the record says {said[0]}x{said[1]}, the image is {size[0]}x{size[1]}",
        "check that it is the image that was annotated",
        record.source,
    )


def stated_sizes(record: Record) -> list[tuple[int, int]] | None:
    """(width, height) of each image as the record states them: two numbers for one image, or two lists.

    Returns:
        None where the record doesn't state the sizes of all its media, or has a video.
    """
    columns = [record.extra.get("width"), record.extra.get("height")]
    columns = [column if isinstance(column, list) else [column] for column in columns]
    sides = [side for column in columns for side in column]
    media = record.media
    if any(len(column) != len(media) for column in columns) or any(medium.kind != "image" for medium in media):
        return None
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        return None
    return list(zip(*columns, strict=True))


def check_stated_sizes(record: Record, real_size: Callable[[int], tuple[int, int]]) -> None:
    """Compare the sizes that a record states with those of its images.

    Args:
        real_size: as for `normalize_boxes`.

    Raises:
        RecordError: one of them differs.
    """
    for place, stated in enumerate(stated_sizes(record) or ()):
        size = real_size(place)
        if size != stated:
            raise RecordError(
                "record_size",
                "the record says {}x{}, but image {} is {}x{}".format(*stated, place + 1, *size),
                "correct its width and height (of the upright image), or set record_sizes=False in dataset_settings",
                record.source,
            )


def _marked_texts(record: Record) -> list[str]:
    """The texts of a record that hold `<`."""
    return [part for turn in record.turns for part in turn.parts if isinstance(part, str) and "<" in part]


def _check_frame(record: Record) -> Record:
    """The record itself, with warnings added."""
    warnings: list[RecordError] = []
    for text in _marked_texts(record):
        if ANY_TAG.search(text):
            warnings += _check_tags(text, record)
            for match in BOX.finditer(text):
                warnings += _check_box(match[1], record)
    return replace(record, warnings=record.warnings + tuple(warnings)) if warnings else record


def _check_tags(text: str, record: Record) -> list[RecordError]:
    """Warnings of tags without their other half; an unclosed box of numbers is an error."""
    if re.search(r"<box>\s*\[", BOX.sub("", text)):
        begun = text[text.rindex("<box>") :][:40]
        _fail(record, f"a box isn't closed: {begun!r}", "write <box>[[x1, y1, x2, y2]]</box>")
    problems = [
        f"{text.count(f'<{tag}>')} <{tag}> and {text.count(f'</{tag}>')} </{tag}> in a turn"
        for tag in TAGS
        if text.count(f"<{tag}>") != text.count(f"</{tag}>")
    ]
    return [RecordError("grounding", problem, "close every tag", record.source) for problem in problems]


def _check_box(text: str, record: Record) -> list[RecordError]:
    """Warnings about the content of one `<box>`."""
    corners = _corners(text)
    if not all(len(box) == 4 for box in corners):
        problem = f"{text.strip()[:40]!r} in <box> is no box"
        return [RecordError("grounding", problem, "write [[x1, y1, x2, y2]]", record.source)]
    for x1, y1, x2, y2 in corners:
        if not (0 <= x1 <= x2 <= FRAME_SIZE and 0 <= y1 <= y2 <= FRAME_SIZE):
            _fail(
                record,
                f"the box {text.strip()[:60]} isn't [[x1, y1, x2, y2]] within 0 to {FRAME_SIZE}",
                'correct the box, or write "boxes": "pixel" with width and height if it is in pixels',
            )
    if max(max(box) for box in corners) <= 1 and any(value % 1 for box in corners for value in box):
        problem = f"the box {text.strip()[:60]} seems to be in fractions of the image"
        return [RecordError("grounding", problem, f"write it in the frame of 0 to {FRAME_SIZE}", record.source)]
    return []


def _corners(text: str) -> list[tuple[float, ...]]:
    """The boxes that a text lists; one empty tuple where it isn't a list of numbers."""
    try:
        found = json.loads(text)
        return [tuple(float(value) for value in box) for box in (found if isinstance(found[0], list) else [found])]
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError):
        return [()]


def find_boxes(text: str) -> list[tuple[float, ...]]:
    """The boxes of a text, four numbers each in whatever frame it uses; what isn't a box is left out."""
    return [box for match in BOX.finditer(text) for box in _corners(match[1]) if len(box) == 4]


def _convert(text: str, width: int, height: int, record: Record) -> str:
    """Boxes in pixels, as JSON, in the 0-1000 frame."""
    out = []
    for box in _corners(text):
        if len(box) != 4:
            _fail(record, f"{text.strip()[:40]!r} is no box", "write [[x1, y1, x2, y2]]")
        x1, y1, x2, y2 = box
        if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
            _fail(record, f"the box {text.strip()[:60]} leaves the image of {width}x{height}", "correct the box")
        out.append([round(value / side * FRAME_SIZE) for value, side in zip(box, (width, height) * 2, strict=True)])
    return json.dumps(out)


def _fail(record: Record, problem: str, remedy: str) -> None:
    raise RecordError("boxes", problem, remedy, record.source)
