"""ms-swift's boxes: `<ref-object>` and `<bbox>` in the texts, filled in reading order from the record's `objects`.

    {"images": ["a.jpg"], "objects": {"ref": ["the bus"], "bbox": [[64, 48, 320, 240]]}, "messages": [
        {"role": "user", "content": "<image>Where is <ref-object>?"}, {"role": "assistant", "content": "<bbox>"}]}

becomes `<ref>the bus</ref>` and `<box>[[100, 100, 500, 500]]</box>` with an image of 640x480, as ms-swift writes them
for InternVL. Four numbers are a box, two a point, a list of these several boxes.

    bbox_type   'real' (default): pixels of the upright image; 'norm1': fractions of it; 'norm_1000': thousandths;
                of all boxes, or a list
    image_id    of each box, the index of its image among the record's images; 0 where the list ends

The list of objects that release 2 has is read, too (`record_checks.read_fillers`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace

from .record_checks import fail, read_fillers, shorten, warn
from .records import Record

PLACEHOLDER = re.compile("<(ref-object|bbox)>")
FRAME_SIZE = 1000
PIXELS = "real"
FRAMES = {"norm1": 1, "norm_1": 1, "norm_1000": FRAME_SIZE}  # sides of the image in other units


def fill_objects(record: Record, real_size: Callable[[int], tuple[int, int]] | None = None) -> Record:
    """The record with its placeholders filled; itself where it has none.

    Args:
        real_size: gives (width, height) of the record's n-th medium; needed for boxes in pixels.

    Raises:
        RecordError: fewer boxes or names than placeholders, boxes outside the image, or another form of `objects`.
    """
    objects, texts = read_fillers(record.extra.get("objects")), [part for turn in record.turns for part in turn.parts]
    if objects is None:
        return record
    counts = {"ref-object": 0, "bbox": 0}
    for text in texts:
        for found in PLACEHOLDER.findall(text) if isinstance(text, str) else ():
            counts[found] += 1
    if record.system and PLACEHOLDER.search(record.system):
        fail(record.source, "objects", "a placeholder of 'objects' in the system message", "write the text there")
    if not any(counts.values()):
        return record
    names, boxes = _list_of(objects, "ref", record), _list_of(objects, "bbox", record)
    warnings = list(record.warnings)
    for placeholder, given in (("ref-object", names), ("bbox", boxes)):
        needed = counts[placeholder]
        problem = f"{needed} <{placeholder}> in the texts, but {len(given)} in 'objects'"
        if needed > len(given):
            fail(record.source, "objects", problem, f"give one for each <{placeholder}>")
        if needed < len(given) and needed:
            warn(warnings, record.source, "objects", problem, "the last ones aren't used")
    size = _sizes(record, real_size)
    numbers, kinds = _image_numbers(objects, len(boxes), record), _kinds(objects, len(boxes), record)
    used = zip(boxes[: counts["bbox"]], kinds, numbers, strict=False)
    values = {
        "ref-object": iter([_name(name, record) for name in names[: counts["ref-object"]]]),
        "bbox": iter([_boxes(box, kind, size, number, record) for box, kind, number in used]),
    }
    turns = tuple(
        turn._replace(
            parts=tuple(
                PLACEHOLDER.sub(lambda match: next(values[match[1]]), part) if isinstance(part, str) else part
                for part in turn.parts
            )
        )
        for turn in record.turns
    )
    return replace(record, turns=turns, warnings=tuple(warnings))


def _list_of(objects: dict, key: str, record: Record) -> list:
    value = objects.get(key)
    if not isinstance(value, list | None):
        fail(record.source, "objects", f"{key!r} of 'objects' is {shorten(str(value))}", f'write "{key}": [...]')
    return value or []


def _name(name: object, record: Record) -> str:
    if not isinstance(name, str):
        fail(record.source, "objects", f"a name in 'ref' is {shorten(str(name))}", "make it a string")
    try:
        name.encode()
    except UnicodeEncodeError:
        fail(record.source, "unicode", "a name in 'ref' holds half of a surrogate pair", "write the file as UTF-8")
    return f"<ref>{name}</ref>"


def _image_numbers(objects: dict, count: int, record: Record) -> list[int]:
    """The index of each box's image."""
    numbers = _list_of(objects, "image_id", record)
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        fail(
            record.source, "objects", f"'image_id' is {shorten(str(numbers))}", "write an index for each box, from 0 on"
        )
    return numbers + [0] * max(0, count - len(numbers))


def _sizes(record: Record, real_size: Callable[[int], tuple[int, int]] | None) -> Callable[[int], tuple[int, int]]:
    """A function that gives the size of the record's n-th image."""
    places = [place for place, medium in enumerate(record.media) if medium.kind == "image"]
    known: dict[int, tuple[int, int]] = {}

    def size(number: int) -> tuple[int, int]:
        if number not in known:
            if real_size is None or number >= len(places):
                problem = f"a box in pixels of image {number}, of {len(places)} images"
                fail(record.source, "objects", problem, "correct 'image_id' (from 0 on), or name the image")
            known[number] = real_size(places[number])
        return known[number]

    return size


def _kinds(objects: dict, count: int, record: Record) -> list[str]:
    """The `bbox_type` of each box."""
    given = objects.get("bbox_type")
    kinds = [kind or PIXELS for kind in given] if isinstance(given, list) else [given or PIXELS] * count
    for kind in kinds:
        if not isinstance(kind, str) or kind not in (PIXELS, *FRAMES):
            choices = ", ".join(map(repr, FRAMES))
            fail(record.source, "objects", f"'bbox_type' is {shorten(str(kind))}", f"it is 'real' (pixels), {choices}")
    return kinds + [PIXELS] * max(0, count - len(kinds))


def _boxes(value: object, kind: str, size: Callable[[int], tuple[int, int]], number: int, record: Record) -> str:
    """A box, a point or several in the 0-1000 frame, as the models write them."""
    several = isinstance(value, list) and value and all(isinstance(item, list) for item in value)
    boxes = [_box(box, kind, size, number, record) for box in (value if several else [value])]
    return f"<box>{json.dumps(boxes)}</box>"


def _box(box: object, kind: str, size: Callable[[int], tuple[int, int]], number: int, record: Record) -> list[int]:
    numeric = isinstance(box, list) and len(box) in (2, 4)
    if not numeric or any(isinstance(value, bool) or not isinstance(value, int | float) for value in box):
        fail(record.source, "objects", f"{shorten(str(box))} in 'bbox' is no box", "write [x1, y1, x2, y2] or [x, y]")
    width, height = size(number) if kind == PIXELS else (FRAMES[kind],) * 2
    (x1, y1), (x2, y2) = box[:2], box[-2:]
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        frame = f"the image of {width}x{height}" if kind == PIXELS else f"0 to {width}"
        fail(record.source, "objects", f"the box {box} isn't [x1, y1, x2, y2] within {frame}", "correct the box")
    sides = (width, height) * 2
    return [round(value / side * FRAME_SIZE) for value, side in zip(box, sides, strict=False)]
