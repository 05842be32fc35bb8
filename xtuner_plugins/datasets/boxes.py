"""Boxes in pixels become boxes in the 0-1000 frame that the models speak.

A record with `"boxes": "pixel"` writes its boxes in pixels of the upright picture, and says its size:

    {"image": "a.jpg", "boxes": "pixel", "width": 640, "height": 480, "conversations": [
        {"from": "human", "value": "Where is <ref>the bus</ref>?"},
        {"from": "gpt", "value": "<ref>the bus</ref><box>[[64, 48, 320, 240]]</box>"}]}

becomes `<box>[[100, 100, 500, 500]]</box>`. Without that key boxes are taken to be in the frame already.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace

from .errors import RecordError
from .records import Record, Turn

BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
FRAME_SIZE = 1000


def normalise_boxes(record: Record, real_size: Callable[[int], tuple[int, int]] | None = None) -> Record:
    """The record with pixel boxes in the 0-1000 frame.

    Args:
        real_size: (width, height) of the record's picture, to check what the record says.

    Raises:
        RecordError: boxes that aren't any, lie outside the picture, or sizes that disagree.
    """
    kind = record.extra.get("boxes")
    if kind is None or kind == "normalised":
        return record
    if kind != "pixel":
        _fail(record, f"'boxes' is {kind!r}", 'write "boxes": "pixel" or leave it out')
    pictures = [place for place, medium in enumerate(record.media) if medium.kind == "image"]
    if len(pictures) != 1:
        _fail(record, f"pixel boxes with {len(pictures)} pictures", "give boxes in the 0-1000 frame instead")
    width, height = (record.extra.get(key) for key in ("width", "height"))
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (width, height)):
        _fail(record, f"pixel boxes in a picture of {width!r} x {height!r}", "give the picture's width and height")
    if real_size is not None and real_size(pictures[0]) != (width, height):
        _fail(
            record,
            f"the record says {width}x{height}, the picture is {{}}x{{}}".format(*real_size(pictures[0])),
            "correct width and height (of the upright picture)",
        )
    turns = tuple(
        Turn(
            turn.role,
            tuple(
                BOX.sub(lambda match: f"<box>{_convert(match[1], width, height, record)}</box>", part)
                if isinstance(part, str)
                else part
                for part in turn.parts
            ),
        )
        for turn in record.turns
    )
    return replace(record, turns=turns)


def find_boxes(text: str) -> list[tuple[float, float, float, float]]:
    """The boxes of a text, in whatever frame it uses; what isn't a box is left out."""
    boxes = []
    for match in BOX.finditer(text):
        try:
            found = json.loads(match[1])
            boxes += [
                tuple(map(float, box)) for box in (found if isinstance(found[0], list) else [found]) if len(box) == 4
            ]
        except (ValueError, TypeError, IndexError, KeyError):
            continue
    return boxes


def _convert(text: str, width: int, height: int, record: Record) -> str:
    try:
        found = json.loads(text)
        boxes = found if isinstance(found[0], list) else [found]
        corners = [tuple(float(value) for value in box) for box in boxes]
    except (ValueError, TypeError, IndexError, KeyError):
        corners = [()]
    out = []
    for box in corners:
        if len(box) != 4:
            _fail(record, f"{text.strip()[:40]!r} is no box", "write [[x1, y1, x2, y2]]")
        x1, y1, x2, y2 = box
        if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
            _fail(record, f"the box {text.strip()[:60]} leaves the picture of {width}x{height}", "correct the box")
        out.append(
            [
                round(x1 / width * FRAME_SIZE),
                round(y1 / height * FRAME_SIZE),
                round(x2 / width * FRAME_SIZE),
                round(y2 / height * FRAME_SIZE),
            ]
        )
    return json.dumps(out)


def _fail(record: Record, problem: str, remedy: str) -> None:
    raise RecordError("boxes", problem, remedy, record.source)
