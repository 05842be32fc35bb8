"""Boxes in pixels become boxes in the 0-1000 frame that the models speak, and ms-swift's `objects` are filled in.

A record with `"boxes": "pixel"` gives its boxes in pixels of the upright image, and that image's size:

    {"image": "a.jpg", "boxes": "pixel", "width": 640, "height": 480, "conversations": [
        {"from": "human", "value": "Where is <ref>the bus</ref>?"},
        {"from": "gpt", "value": "<ref>the bus</ref><box>[[64, 48, 320, 240]]</box>"}]}

becomes `<box>[[100, 100, 500, 500]]</box>`. Without that key boxes are already in the frame, and are checked: one that
leaves it, is inverted or isn't closed is an error; fractions from 0 to 1, a `<box>` without numbers (XML has such a
tag), and `<ref>`, `<box>` or `<quad>` without its other half are warnings.

ms-swift keeps `<ref-object>` and `<bbox>` in the texts, which are filled in reading order from `objects`:

    {"images": ["a.jpg"], "objects": {"ref": ["the bus"], "bbox": [[64, 48, 320, 240]]}, "messages": [
        {"role": "user", "content": "<image>Where is <ref-object>?"}, {"role": "assistant", "content": "<bbox>"}]}

Four numbers are a box, two a point. `bbox_type` is 'real' (default): pixels of the upright image; 'norm1': fractions of
it; 'norm_1000': thousandths. `image_id` is a list of the index of each box's image; 0 where it ends.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from ...errors import RecordError
from .record_checks import fail, fills_texts, shorten, warn
from .records import Record, clean

BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
TAGS = ("ref", "box", "quad")
PLACEHOLDER = re.compile("<(ref-object|bbox)>")
FRAME_SIZE = 1000
COLOR = "#00c853"  # of outlines in drawings
FRAMES = {"real": None, "norm1": 1, "norm_1000": FRAME_SIZE}  # side of an image in the units of `bbox_type`
Size = tuple[int, int]


def normalize_boxes(record: Record, real_size: Callable[[int], Size] | None = None) -> Record:
    """The record with its boxes in the 0-1000 frame, and with warnings about doubtful ones.

    Args:
        real_size: gives (width, height) of the record's n-th medium, to check what the record says.

    Raises:
        RecordError: malformed boxes, boxes outside the image or the frame, sizes that disagree, or `objects` that
            don't fill the placeholders.
    """
    kind = record.extra.get("boxes")
    if kind not in (None, "normalized", "pixel"):
        fail(record.source, "boxes", f"'boxes' is {kind!r}", 'write "boxes": "pixel" or leave it out')
    size = _pixel_size(record, real_size) if kind == "pixel" else None
    warnings = list(record.warnings)
    for text in record.texts:
        _check_tags(text, record, warnings)
    changed = record.map_texts(lambda text: BOX.sub(lambda match: _box(match, size, record, warnings), text))
    record = replace(changed, warnings=tuple(warnings))
    return _fill_objects(record, real_size) if fills_texts(record.extra.get("objects")) else record


def find_boxes(text: str) -> list[tuple[float, ...]]:
    """The boxes of a text, four numbers each in whatever frame it uses; what isn't a box is left out."""
    return [box for match in BOX.finditer(text) for box in _corners(match[1]) if len(box) == 4]


def _corners(text: str) -> list[tuple[float, ...]]:
    """The boxes that a text lists; one empty tuple where it isn't a list of numbers."""
    try:
        found = json.loads(text)
        return [tuple(float(value) for value in box) for box in (found if isinstance(found[0], list) else [found])]
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError):
        return [()]


def _scale(box: tuple | list, size: Size, record: Record, reason: str) -> list[int]:
    """A box or point in a frame of `size` as one in the 0-1000 frame."""
    (width, height), (x1, y1), (x2, y2) = size, box[:2], box[-2:]
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        problem = f"the box {list(box)} isn't [x1, y1, x2, y2] within {width}x{height}"
        fail(record.source, reason, problem, "correct the box")
    return [round(value / side * FRAME_SIZE) for value, side in zip(box, (width, height) * 2, strict=False)]


def _images(record: Record) -> list[int]:
    """Which of the record's media are images."""
    return [place for place, medium in enumerate(record.media) if medium.kind == "image"]


def _pixel_size(record: Record, real_size: Callable[[int], Size] | None) -> Size:
    """Width and height of the only image, in whose pixels the boxes are."""
    images, size = _images(record), (record.extra.get("width"), record.extra.get("height"))
    if len(images) != 1 or not all(type(side) is int and side > 0 for side in size):
        problem = f"pixel boxes with {len(images)} images, of {size[0]!r} x {size[1]!r}"
        fail(record.source, "boxes", problem, "give one image with its width and height, or boxes in the 0-1000 frame")
    if real_size is not None and (real := real_size(images[0])) != size:
        problem = "the record says {}x{}, the image is {}x{}".format(*size, *real)
        fail(record.source, "boxes", problem, "correct width and height (of the upright image)")
    return size


def _check_tags(text: str, record: Record, warnings: list[RecordError]) -> None:
    """Warn of tags without their other half; an unclosed box of numbers is an error."""
    if re.search(r"<box>\s*\[", BOX.sub("", text)):
        begun = text[text.rindex("<box>") :][:40]
        fail(record.source, "boxes", f"a box isn't closed: {begun!r}", "write <box>[[x1, y1, x2, y2]]</box>")
    for tag in TAGS:
        opened, closed = text.count(f"<{tag}>"), text.count(f"</{tag}>")
        if opened != closed:
            problem = f"{opened} <{tag}> and {closed} </{tag}> in a turn"
            warn(warnings, record.source, "grounding", problem, "close every tag")


def _box(match: re.Match, size: Size | None, record: Record, warnings: list[RecordError]) -> str:
    """A `<box>` in the frame of 0 to 1000, converted where its numbers are pixels of an image of this size."""
    boxes, text = _corners(match[1]), match[1].strip()[:60]
    if not all(len(box) == 4 for box in boxes):
        problem, remedy = f"{text!r} in <box> is no box", "write [[x1, y1, x2, y2]]"
        if size is not None:
            fail(record.source, "boxes", problem, remedy)
        warn(warnings, record.source, "grounding", problem, remedy)
        return match[0]
    scaled = [_scale(box, size or (FRAME_SIZE, FRAME_SIZE), record, "boxes") for box in boxes]
    if size is None and max(map(max, boxes)) <= 1 and any(value % 1 for box in boxes for value in box):
        problem = f"the box {text} seems to be in fractions of the image"
        warn(warnings, record.source, "grounding", problem, f"write it in the frame of 0 to {FRAME_SIZE}")
    return match[0] if size is None else f"<box>{json.dumps(scaled)}</box>"


def _fill_objects(record: Record, real_size: Callable[[int], Size] | None) -> Record:
    """The record with ms-swift's placeholders filled; arguments and errors as `normalize_boxes`."""
    objects, warnings = record.extra["objects"], list(record.warnings)
    refuse = partial(fail, record.source, "objects")
    if PLACEHOLDER.search(record.system or ""):
        refuse("a placeholder of 'objects' in the system message", "write the text there")
    given = {"ref-object": objects.get("ref") or [], "bbox": objects.get("bbox") or []}
    numbers, kind = objects.get("image_id") or [], objects.get("bbox_type") or "real"
    if not all(isinstance(values, list) for values in (*given.values(), numbers)) or kind not in [*FRAMES]:
        remedy = f"'ref', 'bbox' and 'image_id' are lists, and 'bbox_type' is one of {', '.join(FRAMES)}"
        refuse(f"'objects' is {shorten(str(objects), 200)}", remedy)
    found = [name for text in record.texts for name in PLACEHOLDER.findall(text)]
    for name, values in given.items():
        needed = found.count(name)
        problem = f"{needed} <{name}> in the texts, but {len(values)} in 'objects'"
        if needed > len(values):
            refuse(problem)
        if 0 < needed < len(values):
            warn(warnings, record.source, "objects", problem, "the last ones aren't used")
    images, size = _images(record), cache(real_size or (lambda place: None))  # it may open the image
    left = {name: iter(enumerate(values)) for name, values in given.items()}

    def fill(match: re.Match) -> str:
        index, value = next(left[match[1]])
        if match[1] == "ref-object":
            if not isinstance(value, str):
                refuse(f"a name in 'ref' is {shorten(str(value))}", "make it a string")
            return "<ref>" + clean(value, "a name in 'ref'", record.source) + "</ref>"
        is_list = isinstance(value, list) and len(value) in (2, 4)
        if not is_list or not all(type(each) in (int, float) for each in value):
            refuse(f"{shorten(str(value))} in 'bbox' is no box", "write [x1, y1, x2, y2] or [x, y]")
        number = numbers[index] if index < len(numbers) else 0
        if (side := FRAMES[kind]) is not None:
            frame = side, side
        elif type(number) is int and 0 <= number < len(images) and real_size is not None:
            frame = size(images[number])
        else:
            problem = f"a box in pixels of image {number!r}, of {len(images)} images"
            refuse(problem, "'image_id' is an index from 0 on")
        return f"<box>{json.dumps([_scale(value, frame, record, 'objects')])}</box>"

    return replace(record.map_texts(lambda text: PLACEHOLDER.sub(fill, text)), warnings=tuple(warnings))
