"""The report of the checker: one self-contained HTML page to look at before training.

It shows a table of the files, histograms, packs as bars, complaints, and cards of samples: images with tile grid and
boxes, thumbnails, video frames, and the text as the model gets it, with supervised tokens in color. The page is
`report.html.jinja`; this module gathers its contents.
"""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...html_page import render
from ...hub.constants import IGNORE_INDEX
from ..dataset import MultimodalDataset
from ..errors import DataError
from ..images.folders import FolderCount
from ..images.media import load_image
from ..images.tiling import DynamicTiling
from ..images.video import load_frames
from ..plan.packing import pack_samples
from ..preference import PreferenceDataset
from ..records.boxes import find_boxes
from .check import FileReport, count_samples, histogram

CARD_WIDTH, CARD_HEIGHT = 440, 360  # px, largest size of an image on a card
CARD_HALF = 290  # px, width where a card shows several
SMALL = 120  # px, side of a thumbnail or a frame
BAR_WIDTH = 110  # px, the longest bar of a histogram
MAX_PACKS = 12
MAX_COMPLAINTS = 200


def write_report(
    path: str | os.PathLike,
    dataset: MultimodalDataset,
    reports: Sequence[FileReport],
    complaints: Sequence[str],
    folders: Sequence[FolderCount] = (),
    *,
    num_cards: int = 12,
    max_tokens: int = 8192,
    seed: int = 0,
) -> None:
    """Write the page.

    Args:
        path: the file to write.
        dataset: the checked dataset.
        reports: one per annotation file, in the dataset's order.
        complaints: all messages; the first `MAX_COMPLAINTS` are shown.
        folders: the counts of the image folders.
        num_cards: number of random samples to show, from each file in turn.
        max_tokens: budget of the packs that are drawn.
        seed: of the random picks.
    """
    page = render(
        Path(__file__).parent,
        "report.html.jinja",
        num_wrong=sum(report.num_wrong for report in reports),
        num_records=sum(report.num_records for report in reports),
        num_samples=count_samples(dataset, reports),
        files=_files(dataset, reports),
        folders=folders,
        details=_details(dataset, reports),
        packs=_packs(reports, max_tokens),
        complaints=complaints,
        most_complaints=MAX_COMPLAINTS,
        has_pairs=isinstance(dataset, PreferenceDataset),
        cards=[_card(dataset, number, row) for number, row in _pick(dataset, reports, num_cards, seed)],
    )
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)


def _pick(
    dataset: MultimodalDataset, reports: Sequence[FileReport], num_cards: int, seed: int
) -> list[tuple[int, int]]:
    """(file, record) of random usable samples, taken from the files in turn."""
    rejected = [{row for row, _, _ in report.rejected} for report in reports]
    queues: dict[int, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(dataset)):
        number, row = dataset.locate(int(index))
        queue = queues.setdefault(number, [])
        if len(queue) < num_cards and row not in queue and row not in rejected[number]:
            queue.append(row)
        if len(queues) == len(dataset.sources) and all(len(queue) == num_cards for queue in queues.values()):
            break
    places = sorted((place, number, row) for number, rows in queues.items() for place, row in enumerate(rows))
    return sorted((number, row) for _, number, row in places[:num_cards])


def _column(reports: Sequence[FileReport], name: str) -> np.ndarray:
    return np.concatenate([report.column(name) for report in reports] or [np.zeros(0, np.int64)])


def _files(dataset: MultimodalDataset, reports: Sequence[FileReport]) -> list[dict]:
    """A row of sums per file, and one over several files."""
    rows = [_sums(source.name, [report]) for source, report in zip(dataset.sources, reports, strict=True)]
    return rows + [_sums("all files", reports)] if len(reports) > 1 else rows


def _sums(name: str, reports: Sequence[FileReport]) -> dict:
    tokens = _column(reports, "tokens")
    return {
        "name": name,
        "num_records": sum(report.num_records for report in reports),
        "num_wrong": sum(report.num_wrong for report in reports),
        "num_images": sum(report.num_images for report in reports),
        "num_tiles": _column(reports, "tiles").sum(),
        "num_tokens": tokens.sum(),
        "learned": _column(reports, "supervised").sum() / max(tokens.sum(), 1),
        "longest": tokens.max(initial=0),
    }


def _details(dataset: MultimodalDataset, reports: Sequence[FileReport]) -> list[dict]:
    """Histograms per file; of several files first those of all together."""
    alone = len(reports) == 1
    details = [
        {
            "name": source.name,
            "path": report.path,
            "reasons": report.complaints.most_common(),
            "columns": _histograms([report]),
            "opened": alone,
        }
        for source, report in zip(dataset.sources, reports, strict=True)
    ]
    together = {"name": "all files", "path": "", "reasons": [], "columns": _histograms(reports), "opened": True}
    return details if alone else [together, *details]


def _histograms(reports: Sequence[FileReport]) -> list[dict]:
    titles = {name: name for name in ("tokens", "tiles", "turns")}
    titles |= {side: f"{side} of the first image" for side in ("width", "height")}
    columns = []
    for name, title in titles.items():
        bins = histogram(_column(reports, name))
        most = max((count for _, count in bins), default=1)
        columns.append(
            {"name": title, "bins": [(label, count, round(BAR_WIDTH * count / most)) for label, count in bins]}
        )
    return columns


def _packs(reports: Sequence[FileReport], max_tokens: int) -> dict:
    """The first packs of all samples, each with its samples."""
    tokens, tiles = _column(reports, "tokens"), _column(reports, "tiles")
    fits = np.flatnonzero((tokens > 0) & (tokens <= max_tokens))
    if not len(fits):
        return {"max_tokens": max_tokens, "total": 0, "bars": []}
    packs = pack_samples(fits, tokens[fits], tiles[fits], max_tokens=max_tokens)
    bars = []
    for number in range(min(len(packs), MAX_PACKS)):
        members = packs[number]
        parts = [
            {"tokens": tokens[index], "tiles": tiles[index], "percent": 100 * tokens[index] / max_tokens}
            for index in members
        ]
        bars.append({"parts": parts, "full": tokens[members].sum() / max_tokens})
    return {"max_tokens": max_tokens, "total": len(packs), "bars": bars}


def _card(dataset: MultimodalDataset, number: int, row: int) -> dict:
    source = dataset.sources[number]
    card = {"source": source.index.source(row), "dataset": source.name, "error": None}
    try:
        sample = dataset.load(number, row)
        ids, labels = sample["input_ids"].numpy(), sample["labels"].numpy()
        images = list(_media(dataset, number, row, ids))
    except DataError as error:
        return {**card, "error": str(error)}
    return {
        **card,
        "num_tokens": len(ids),
        "num_learned": int((labels != IGNORE_INDEX).sum()),
        "num_tiles": sample["num_tiles"],
        "images": images,
        **_texts(dataset, ids, labels, sample.get("branches")),
    }


def _texts(dataset: MultimodalDataset, ids: np.ndarray, labels: np.ndarray, branches: Sequence[int] | None) -> dict:
    """`runs` of a conversation; of a preference pair those of its prompt, and `answers`."""
    if branches is None:
        return {"runs": _runs(dataset, ids, labels), "answers": []}
    ends = np.cumsum(branches)[:-1]
    prompt, *answers = (_runs(dataset, *part) for part in zip(np.split(ids, ends), np.split(labels, ends), strict=True))
    return {"runs": prompt, "answers": list(zip(("chosen", "rejected"), answers, branches[1:], strict=True))}


def _media(dataset: MultimodalDataset, number: int, row: int, ids: np.ndarray) -> Iterator[dict]:
    """The images and video frames of a sample in order, as far as it isn't cut off."""
    source, record = dataset.sources[number], dataset.record(number, row)
    lengths = _span_lengths(ids, dataset.tokenizer.image_context_id)
    boxes = find_boxes(" ".join(turn.text for turn in record.turns))
    for medium in record.media:
        path = source.folder.resolve(medium.name)
        if medium.kind == "video":
            for index, frame in enumerate(load_frames(path, dataset.num_frames, dataset.max_pixels)[: len(lengths)]):
                frame.thumbnail((SMALL, SMALL))
                yield _embed(frame, f"Frame-{index + 1}")
                lengths.pop(0)
        elif lengths:
            yield from _image(
                load_image(path, dataset.max_pixels),
                source.tiling,
                lengths.pop(0) // dataset.budget.tokens_per_tile,
                boxes,
                record.extra,
                CARD_WIDTH if len(record.media) == 1 else CARD_HALF,
            )


def _span_lengths(ids: np.ndarray, context_id: int) -> list[int]:
    """Image tokens of each image: the lengths of their runs in `ids`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ids == context_id, [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def _image(image: Image.Image, tiling: DynamicTiling, num_tiles: int, boxes, extra: dict, width: int) -> Iterator[dict]:
    """The image with its tile grid and boxes, then its thumbnail if it has one."""
    thumbnail = tiling.use_thumbnail and num_tiles > 1
    cols, rows, _ = tiling.limited(num_tiles - thumbnail).grid(*image.size)
    scale = min(width / image.width, CARD_HEIGHT / image.height)
    shown = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(shown)
    for col in range(1, cols):
        draw.line([(shown.width * col / cols, 0), (shown.width * col / cols, shown.height)], "#ff2d55", 2)
    for line in range(1, rows):
        draw.line([(0, shown.height * line / rows), (shown.width, shown.height * line / rows)], "#ff2d55", 2)
    frame = (extra.get("width"), extra.get("height")) if extra.get("boxes") == "pixel" else (1000, 1000)
    for x1, y1, x2, y2 in boxes:
        left, right = (x / frame[0] * shown.width for x in (x1, x2))
        top, bottom = (y / frame[1] * shown.height for y in (y1, y2))
        if left <= right and top <= bottom:
            draw.rectangle((left, top, right, bottom), outline="#00c853", width=3)
    tiles = "1x1 tile" if cols * rows == 1 else f"{cols}x{rows} tiles"
    yield _embed(shown, f"{image.width}x{image.height}, {tiles}")
    if thumbnail:
        yield _embed(image.resize((SMALL, SMALL)), "thumbnail")


def _embed(image: Image.Image, label: str) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"label": label, "width": image.width, "height": image.height, "data": data}


def _runs(dataset: MultimodalDataset, ids: np.ndarray, labels: np.ndarray) -> list[tuple[str, str]]:
    """The tokens as (kind, text), run by run: 'learn', 'span' (image tokens) or 'plain'."""
    kinds = np.where(labels != IGNORE_INDEX, 1, np.where(ids == dataset.tokenizer.image_context_id, 2, 0))
    edges = np.flatnonzero(np.diff(kinds)) + 1
    runs = []
    for run, kind in zip(np.split(ids, edges), kinds[np.concatenate([[0], edges])], strict=True):
        text = f"{len(run):,} image tokens" if kind == 2 else dataset.tokenizer.decode(run.tolist())
        runs.append((("plain", "learn", "span")[kind], text))
    if runs[-1][0] == "plain":  # a template's last line break
        runs[-1] = ("plain", runs[-1][1].rstrip("\n"))
    return runs
