"""The page of the check: figures, complaints, findings, and cards of samples that can be searched.

The page is one file, `page.html.jinja`, with its images in it; nothing is loaded from elsewhere. Its figures are the
files of a mixture with their shares of an epoch, and what other limits would do.
"""

import base64
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..datasets.dataset import MultimodalDataset
from ..datasets.images.media import load_image
from ..datasets.images.video import load_frames
from ..datasets.plan.budget import DROPPED, FATES, SHRUNK, TRUNCATED
from ..datasets.plan.measure import Measure
from ..datasets.records.boxes import COLOR, FRAME_SIZE, find_boxes
from ..datasets.records.records import Record
from ..errors import DataError
from ..html_page import render
from ..hub.constants import IGNORE_INDEX
from .check import Checked, FileReport, count_samples, stops
from .findings import MOST_EXAMPLES, WORDS, Finding, Held, Place

MOST_MESSAGES = 200  # of each reason
NUM_CARDS = 100  # of random samples
FACTORS = (0.5, 1, 2, 4)  # of max_length
TILES = (1, 4, 6, 12)  # besides the setting's own max_tiles
SIDE, TILE = 360, 96  # px, longest side of a stored image and of a tile
MOST_IMAGES, MOST_TILES = 6, 26  # of a card
MOST_TEXT = 6000  # characters of a card

Run = tuple[str, str]  # 'learn', 'span' (number of image tokens), 'head' or 'plain', and a text
Tags = dict[Place, list[str]]
Row = dict[str, Any]


def write_page(
    path: str | os.PathLike,
    dataset: Checked,
    reports: Sequence[FileReport],
    findings: Sequence[Finding],
    validation: Held = (),
) -> int:
    """Write the page.

    Args:
        path: the file to write.
        dataset, reports, validation: as `findings.find` has them.
        findings: what it returned.

    Returns:
        The number of cards.

    Raises:
        OSError: the file can't be written.
    """
    everything, picked = [(dataset, reports), *validation], pick(dataset, reports, findings)
    cards = [_card(*everything[place[0]], place, reasons) for place, reasons in picked.items()]
    page = render(
        Path(__file__).parent,
        "page.html.jinja",
        num_wrong=sum(report.complaints.total() for report in reports),
        num_records=sum(map(len, reports)),
        num_samples=count_samples(dataset, reports),
        has_tokens=isinstance(dataset, MultimodalDataset),
        shares=shares(dataset, reports),
        what_if=what_if(dataset, reports),
        reasons=_reasons(reports),
        findings=[(each, WORDS[each.kind], _examples(each, everything)) for each in findings],
        words=WORDS,
        cards=cards,
    )
    Path(path).write_text(page, encoding="utf-8", errors="replace")
    return len(cards)


def as_json(
    dataset: Checked, reports: Sequence[FileReport], findings: Sequence[Finding], validation: Held = ()
) -> dict:
    """The numbers of the page, for programs to read; arguments as `write_page`.

    Returns:
        A dict of values that JSON can hold: `files`, records and complaints of each; `findings`, with the names of
        records that show them; `shares` and `what_if`, as these functions return them.
    """
    everything = [(dataset, reports), *validation]
    found = [{**vars(each), "where": dict(each.where), "examples": _examples(each, everything)} for each in findings]
    files = []
    for each in reports:
        counts = {"unusable": dict(each.complaints), "warnings": dict(each.warnings)}
        files.append({"file": each.source.index.path, "num_records": len(each), **counts})
    return {"files": files, "findings": found, "shares": shares(dataset, reports), "what_if": what_if(dataset, reports)}


def _examples(finding: Finding, everything: Held) -> list[list[str]]:
    """The examples by `file:line`."""
    return [
        [everything[data][0].sources[number].index.source(row) for data, number, row in example]
        for example in finding.examples
    ]


def pick(dataset: Checked, reports: Sequence[FileReport], findings: Sequence[Finding]) -> Tags:
    """The records that get a card, each with the reasons for it: complaints, findings, or none for a random sample."""
    tags: Tags = {}
    for number, report in enumerate(reports):
        shown: Counter[str] = Counter()
        for complaint in report.found:
            shown[complaint.reason] += 1
            if shown[complaint.reason] <= MOST_EXAMPLES:
                tags.setdefault((0, number, complaint.row), []).append(complaint.reason)
    for finding in findings:
        for place in {place: None for example in finding.examples for place in example}:
            tags.setdefault(place, []).append(finding.kind)
    for place in _random(dataset, reports):
        tags.setdefault(place, [])
    return dict(sorted(tags.items()))


def _random(dataset: Checked, reports: Sequence[FileReport]) -> list[Place]:
    """Random usable samples of an epoch, taken from the files in turn."""
    rng, found = np.random.default_rng(0), []
    for number, (rows, report) in enumerate(zip(dataset.picks, reports, strict=True)):
        usable = rng.permutation(np.intersect1d(rows, report.records["row"]))[:NUM_CARDS].tolist()
        found += [(turn, (0, number, row)) for turn, row in enumerate(usable)]
    return [place for _, place in sorted(found)[:NUM_CARDS]]


def _card(dataset: Checked, reports: Sequence[FileReport], place: Place, reasons: Sequence[str]) -> dict[str, Any]:
    """What the page shows of a record."""
    data, number, row = place
    report, source = reports[number], dataset.sources[number]
    complaints = [each for each in report.found if each.row == row]
    shown: dict[str, Any] = {"at": source.index.source(row), "dataset": source.name, "is_held_out": data > 0}
    shown |= {"reasons": reasons, "messages": list(map(report.message, complaints))}
    shown |= {"is_bad": any(map(stops, complaints)), "facts": {}, "pictures": [], "tiles": []}
    try:
        record = dataset.record(number, row)
        shown["runs"] = turn_runs(record)
        shown["pictures"] = pictures(dataset.measuring(number), record)
        if isinstance(dataset, MultimodalDataset):
            sample = dataset.load(number, row)
            ids, labels, tiles = sample["input_ids"].numpy(), sample["labels"].numpy(), sample["tiles"]
            shown["facts"] = {"tokens": len(ids), "learned": int((labels >= 0).sum()), "tiles": len(tiles)}
            shown["runs"] = token_runs(dataset.tokenizer, ids, labels, sample.get("branches", ()))
            shown["tiles"] = [
                embed(Image.fromarray(tile.permute(1, 2, 0).numpy()), TILE) for tile in tiles[:MOST_TILES]
            ]
    except DataError as error:
        shown["messages"] = shown["messages"] or [str(error)]  # it has changed since it was checked
        shown.setdefault("runs", shorten([("plain", _raw(source.index, row))]))
    return shown


def _raw(index: Any, row: int) -> str:
    """A record that can't be used, as its file has it."""
    try:
        return index.read(row).decode("utf-8", "replace") if hasattr(index, "read") else repr(index.parse(row))
    except DataError as error:
        return str(error)


def _reasons(reports: Sequence[FileReport]) -> list[dict[str, Any]]:
    """Complaints and warnings by reason, complaints and the most frequent first, with remedy and examples."""
    found: dict[tuple[str, bool], list] = {}
    for report in reports:
        for each in filter(lambda each: each.reason != "rejected", report.found):
            found.setdefault((each.reason, stops(each)), []).append((report, each))
    groups = []
    for (reason, is_bad), pairs in sorted(found.items(), key=lambda group: (not group[0][1], -len(group[1]))):
        said = [report.message(each).removesuffix(f"; {each.remedy}") for report, each in pairs[:MOST_MESSAGES]]
        facts = {"reason": reason, "is_bad": is_bad, "count": len(pairs), "remedy": pairs[0][1].remedy}
        groups.append(facts | {"messages": said})
    return groups


def shares(dataset: Checked, reports: Sequence[FileReport]) -> list[Row]:
    """What each file contributes to an epoch, after `repeat_times`, and its share of the mixture.

    Returns:
        A row per file: name, repeat, records, unusable (number of records), images; samples and samples_share, 0 to 1.
        With a model the same of tokens, supervised (tokens) and tiles.
    """
    rows, names = [], ["samples"]
    for pick, report in zip(dataset.picks, reports, strict=True):
        times = np.bincount(pick, minlength=len(report)).astype(np.int64)
        times[list(report.left_out)] = 0
        row = {"name": report.source.name, "repeat": report.source.repeat, "records": len(report)}
        row |= {"unusable": report.complaints.total(), "images": len(report.images), "samples": int(times.sum())}
        if report.fates is not None:
            names = ["samples", "tokens", "supervised", "tiles"]
            row |= {name: int(getattr(report, name) @ times) for name in names[1:]}
        rows.append(row)
    for name in names:
        total = sum(row[name] for row in rows)
        for row in rows:
            row[f"{name}_share"] = row[name] / total if total else 0.0
    return rows


def what_if(dataset: Checked, reports: Sequence[FileReport]) -> list[Row]:
    """What another `max_length` or `max_tiles` would do to an epoch, by the measured lengths.

    Returns:
        A row per pair of limits: max_length, max_tiles, is_current; samples that train, of these shrunk and cut;
        too_long, samples that are left out; tokens and tiles of an epoch. [] without a model.
    """
    if not isinstance(dataset, MultimodalDataset):
        return []
    own, current = max(source.tiling.max_tiles for source in dataset.sources), dataset.budget.max_length
    lengths = sorted({max(1, int(current * factor)) for factor in FACTORS})
    rows = []
    for max_length, max_tiles in product(lengths, sorted({*TILES, own})):
        setting = {"max_length": max_length, "max_tiles": max_tiles}
        setting["is_current"] = (max_length, max_tiles) == (current, own)
        rows.append(setting | _epoch_with(dataset, max_length, max_tiles, own))
    return rows


def _epoch_with(dataset: MultimodalDataset, max_length: int, max_tiles: int, own: int) -> Row:
    """Sums of an epoch; files with limits of their own keep lower ones than `max_tiles`."""
    total, tokens, tiles = np.zeros(len(FATES), np.int64), 0, 0
    for number, source in enumerate(dataset.sources):
        tiling = source.tiling
        if max_tiles != own:
            limit = max_tiles if tiling.max_tiles == own else min(max_tiles, tiling.max_tiles)
            tiling = replace(tiling, min_tiles=min(tiling.min_tiles, max_tiles), max_tiles=limit)
        lengths = dataset.lengths(number)
        columns = lengths.lay_out(tiling, replace(dataset.budget, max_length=max_length))
        times = np.bincount(dataset.picks[number], minlength=len(lengths)).astype(np.int64)
        times[list(dataset.rejected[number])] = 0
        total += np.bincount(columns[2], times, len(FATES)).astype(np.int64)
        tokens, tiles = tokens + int(columns[0] @ times), tiles + int(columns[1] @ times)
    fates = {"shrunk": int(total[SHRUNK]), "cut": int(total[TRUNCATED]), "too_long": int(total[DROPPED])}
    return {"samples": int(total[:DROPPED].sum()), **fates, "tokens": tokens, "tiles": tiles}


def embed(image: Image.Image, side: int = SIDE) -> str:
    """An image, made smaller until no side has more than `side` pixels, as the data URL of a JPEG."""
    image = image.copy()
    image.thumbnail((side, side))
    image.save(buffer := io.BytesIO(), "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def token_runs(tokenizer: Any, ids: np.ndarray, labels: np.ndarray, branches: Sequence[int] = ()) -> list[Run]:
    """Tokens as the model gets them (ids, labels: int64 `[s]`), run by run; a pair has heads before its answers.

    Args:
        tokenizer: of the dataset.
        branches: lengths of prompt, chosen and rejected answer of a pair.

    Returns:
        The runs in order, cut off after `MOST_TEXT` characters.
    """
    runs: list[Run] = []
    ends = np.cumsum(branches)[:-1].astype(int) if len(branches) else []
    for name, part, own in zip(("", "chosen", "rejected"), np.split(ids, ends), np.split(labels, ends), strict=False):
        runs += [("head", name)] if name else []
        kinds = np.where(own != IGNORE_INDEX, 1, np.where(part == tokenizer.image_context_id, 2, 0))
        edges = np.flatnonzero(np.diff(kinds)) + 1
        for run, kind in zip(np.split(part, edges), np.split(kinds, edges), strict=True):
            if len(run):
                text = f"{len(run):,}" if kind[0] == 2 else tokenizer.decode(run.tolist())
                runs.append((("plain", "learn", "span")[kind[0]], text))
    return shorten(runs)


def turn_runs(record: Record) -> list[Run]:
    """The texts of a record as it is written, without a model."""
    runs: list[Run] = []
    for turn in record.turns:
        text = "".join(part if isinstance(part, str) else f"<{part.kind}>" for part in turn.parts)
        runs += [("head", turn.role), ("learn" if turn.role == "assistant" and turn.supervised else "plain", text)]
    return shorten(runs)


def shorten(runs: Sequence[Run]) -> list[Run]:
    """The first `MOST_TEXT` characters."""
    kept, left = [], MOST_TEXT
    for kind, text in runs:
        kept.append((kind, text if len(text) <= left else f"{text[:left]} …"))
        left -= len(text)
        if left <= 0:
            break
    return kept


def pictures(task: Measure, record: Record) -> list[tuple[str, str]]:
    """(caption, data URL) of the first images and of a frame of each video; boxes are drawn into a single image.

    Raises:
        DataError: one can't be opened.
    """
    found = []
    for medium in record.media[:MOST_IMAGES]:
        path = task.folder.resolve(medium.name)
        image = load_frames(path, task.num_frames)[0] if medium.kind == "video" else load_image(path)
        size = f"{image.width}×{image.height}"
        if len(record.media) == 1:
            image = _with_boxes(image, record)
        found.append((f"{str(path).rpartition('/')[2]} {size}", embed(image)))
    return found


def _with_boxes(image: Image.Image, record: Record) -> Image.Image:
    image, frame = image.copy(), (FRAME_SIZE, FRAME_SIZE)
    image.thumbnail((SIDE, SIDE))
    if record.extra.get("boxes") == "pixel":
        frame = record.extra.get("width") or image.width, record.extra.get("height") or image.height
    for box in find_boxes(" ".join(record.texts)):
        (left, right), (top, bottom) = (
            sorted(value * side / whole for value in values)
            for values, side, whole in zip((box[::2], box[1::2]), image.size, frame, strict=True)
        )
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), outline=COLOR, width=3)
    return image
