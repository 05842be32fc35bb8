"""The cards of the checker's page: which records are shown, and what of them.

The page gets each card as JSON, and draws tile grids and boxes over the images itself; so each image is stored once, in
the page or in a folder beside it.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from ...hub.constants import IGNORE_INDEX
from ..dataset import MultimodalDataset
from ..errors import DataError
from ..records.boxes import find_boxes
from ..records.json_index import OffsetIndex
from ..records.pairs import PairRecord
from ..records.records import Record
from .check import FileReport, is_complaint
from .findings import MOST_EXAMPLES, Finding, Place
from .looking import Checked, Seen, SeenImage, see
from .texts import script_code, script_name

MOST_EMBEDDED = 400  # cards whose images one file holds; more have a folder
SIDE = 440  # px, longest side of a stored image
MOST_IMAGES = 12  # of a card
MOST_TEXT = 6000  # characters of a card
Tags = dict[Place, list[str]]

Card = dict[str, Any]


class Thumbnails:
    """The images of a page, each once: in the page itself, or as files of a folder.

    Args:
        folder: gets the files, which the page names relative to its own folder; None embeds the images.

    Attributes:
        sources: of each image, what an `<img>` loads.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.sources: list[str] = []
        self._known: dict[bytes, int] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].jpg"):  # of an earlier page of this name
                old.unlink()

    def add(self, image: Image.Image) -> int:
        """Store an image, made smaller; returns its index in `sources`."""
        image = image.copy()
        image.thumbnail((SIDE, SIDE))
        key = blake2b(image.tobytes() + repr(image.size).encode(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = len(self.sources)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=80)
            self.sources.append(self._keep(buffer.getvalue()))
        return self._known[key]

    def _keep(self, data: bytes) -> str:
        if self.folder is None:
            return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        name = f"{len(self.sources):06}.jpg"
        (self.folder / name).write_bytes(data)
        return f"{quote(self.folder.name)}/{name}"


def pick(
    dataset: Checked,
    reports: Sequence[FileReport],
    findings: Sequence[Finding],
    num_random: int,
    seed: int = 0,
) -> Tags:
    """The records that get a card, each with the reasons for it: troubles, findings, or none for a random sample.

    Args:
        num_random: usable records without a reason, taken from the files in turn; 0: no cards at all.
    """
    tags: Tags = {}
    if not num_random:
        return tags
    for number, report in enumerate(reports):
        counts: dict[str, int] = {}
        for trouble in report.troubles:
            counts[trouble.reason] = counts.get(trouble.reason, 0) + 1
            if counts[trouble.reason] <= MOST_EXAMPLES:
                tags.setdefault((0, number, trouble.row), []).append(trouble.reason)
    for finding in findings:
        for place in {place: None for example in finding.examples for place in example}:
            tags.setdefault(place, []).append(finding.kind)
    for number, row in _random(dataset, reports, num_random, seed):
        tags.setdefault((0, number, row), [])
    return dict(sorted(tags.items()))


def _random(dataset: Checked, reports: Sequence[FileReport], num: int, seed: int) -> Iterator[tuple[int, int]]:
    """(file, record) of random usable samples of an epoch, taken from the files in turn."""
    rng = np.random.default_rng(seed)
    queues = []
    for rows, report in zip(dataset.picks, reports, strict=True):
        usable = np.intersect1d(rows, report.facts.records["row"])
        queues.append(rng.permutation(usable)[:num].tolist())
    left = num
    for place in range(num):
        for number, queue in enumerate(queues):
            if place < len(queue) and left:
                left -= 1
                yield number, queue[place]


def card(
    dataset: Checked,
    report: FileReport,
    place: Place,
    reasons: Sequence[str],
    thumbnails: Thumbnails,
) -> Card:
    """What the page shows of a record; its keys are those that the page's script reads."""
    data, number, row = place
    source = dataset.sources[number]
    troubles = report.troubles_by_row.get(row, [])
    shown: Card = {
        "at": source.index.source(row),
        "dataset": source.name,
        "held_out": bool(data),
        "reasons": list(reasons),
        "messages": [each.message for each in troubles],
        "is_bad": any(map(is_complaint, troubles)),
        "tokens": 0,
        "learned": 0,
        "tiles": 0,
        "turns": 0,
        "language": "",
        "images": [],
        "more": 0,
        "runs": [],
        "answers": [],
    }
    try:
        seen = see(dataset, number, row)
    except DataError as error:
        if not shown["messages"]:  # the record has changed since it was checked
            shown["messages"] = [str(error)]
        return {**shown, "is_bad": True, "runs": [["plain", _raw(dataset, number, row)]]}
    return {**shown, **_contents(dataset, source, seen, thumbnails)}


def _raw(dataset: Checked, number: int, row: int) -> str:
    index = dataset.sources[number].index
    try:
        if isinstance(index, OffsetIndex):  # as the file has it, where it may be no JSON
            return index.read(row)[:MOST_TEXT].decode("utf-8", "replace")
        return json.dumps(index.parse(row), ensure_ascii=False, default=str)[:MOST_TEXT]
    except DataError as error:
        return str(error)


def _contents(dataset: Checked, source, seen: Seen, thumbnails: Thumbnails) -> Card:
    record, sample = seen.record, seen.sample
    ids, labels = sample["input_ids"].numpy(), sample["labels"].numpy()
    images = seen.images
    if isinstance(dataset, MultimodalDataset):
        images = images[: _num_spans(ids, dataset.tokenizer.image_context_id)]  # the others are cut off
        texts = token_texts(dataset.tokenizer, ids, labels, sample.get("branches"))
    else:
        texts = _turn_texts(record)
    boxes = _boxes(record) if len(images) == 1 else []
    return {
        "tokens": len(ids),
        "learned": int((labels != IGNORE_INDEX).sum()),
        "tiles": sample["num_tiles"],
        "turns": len(record.turns),
        "language": script_name(script_code(" ".join(turn.text for turn in record.turns))),
        "images": images_of(images, boxes, thumbnails),
        "more": max(0, len(images) - MOST_IMAGES),
        **texts,
    }


def images_of(images: Sequence[SeenImage], boxes: Sequence[Sequence[float]], thumbnails: Thumbnails) -> list[dict]:
    """The first images with their grids, and boxes as shares of their sides."""
    frames = 0
    found = []
    for seen in images[:MOST_IMAGES]:
        frames += seen.kind == "frame"
        found.append(
            {
                "src": thumbnails.add(seen.image),
                "kind": seen.kind,
                "name": f"Frame-{frames}" if seen.kind == "frame" else Path(seen.path).name,
                "size": seen.size,
                "grid": tuple(seen.grid),
                "boxes": boxes,
            }
        )
    return found


def _boxes(record: Record) -> list[list[float]]:
    width, height = (1000, 1000)
    if record.extra.get("boxes") == "pixel":
        width, height = record.extra.get("width"), record.extra.get("height")
    if not width or not height:
        return []
    found = find_boxes(" ".join(turn.text for turn in record.turns))
    shares = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in found]
    return [[round(share, 4) for share in box] for box in shares if box[0] <= box[2] and box[1] <= box[3]]


def _num_spans(ids: np.ndarray, context_id: int) -> int:
    """Images of a sample: the runs of image tokens."""
    is_image = ids == context_id
    return int((is_image[1:] & ~is_image[:-1]).sum() + (len(ids) > 0 and is_image[0]))


def token_texts(tokenizer, ids: np.ndarray, labels: np.ndarray, branches: Sequence[int] | None = None) -> Card:
    """`runs` of a conversation as the model gets it; of a preference pair those of its prompt, and `answers`."""
    if branches is None:
        return {"runs": _runs(tokenizer, ids, labels)}
    ends = np.cumsum(branches)[:-1]
    prompt, *answers = (
        _runs(tokenizer, *part) for part in zip(np.split(ids, ends), np.split(labels, ends), strict=True)
    )
    names = ("chosen", "rejected")
    return {
        "runs": prompt,
        "answers": [list(each) for each in zip(names, answers, map(int, branches[1:]), strict=True)],
    }


def _runs(tokenizer, ids: np.ndarray, labels: np.ndarray) -> list[list[str]]:
    """The tokens as [kind, text], run by run: 'learn', 'span' (number of image tokens) or 'plain'."""
    if not len(ids):
        return []
    kinds = np.where(labels != IGNORE_INDEX, 1, np.where(ids == tokenizer.image_context_id, 2, 0))
    edges = np.flatnonzero(np.diff(kinds)) + 1
    runs, left = [], MOST_TEXT
    for run, kind in zip(np.split(ids, edges), kinds[np.concatenate([[0], edges])], strict=True):
        text = f"{len(run):,}" if kind == 2 else tokenizer.decode(run[: left + 1].tolist())
        runs.append([("plain", "learn", "span")[kind], text if len(text) <= left else f"{text[:left]} …"])
        left = max(0, left - len(text))
        if not left:
            break
    if runs[-1][0] == "plain":  # a template's last line break
        runs[-1][1] = runs[-1][1].rstrip("\n")
    return runs


def _turn_texts(record: Record) -> Mapping[str, list]:
    """The texts of a record as it is written, without a template."""

    def run(turn, text: str) -> list[str]:
        return ["learn" if turn.role == "assistant" and turn.supervised else "plain", text[:MOST_TEXT]]

    turns = record.turns
    answers: list = []
    if isinstance(record, PairRecord):
        turns = record.turns[:-2]
        answers = [
            [name, [run(turn, turn.text)], 0]
            for name, turn in zip(("chosen", "rejected"), record.turns[-2:], strict=True)
        ]
    runs = []
    for turn in turns:
        parts = [part if isinstance(part, str) else f"<{part.kind}>" for part in turn.parts]
        runs += [["plain", f"{turn.role}: "], run(turn, "".join(parts)), ["plain", "\n"]]
    return {"runs": runs, "answers": answers}
