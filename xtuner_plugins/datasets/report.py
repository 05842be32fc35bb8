"""The checker's page: one self-contained HTML file to look at before training.

Figures and histograms for each file, packs as bars, and cards of samples: the picture with its tile grid and boxes, the
thumbnail, and the text as the model gets it, with what it learns from in colour.
"""

import base64
import html
import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .boxes import find_boxes
from .check import FileReport, histogram
from .dataset import MultimodalDataset
from .errors import DataError
from .media import load_image
from .packing import pack_samples

CARD_WIDTH = 420  # px of a picture on a card
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:24px;color:#1c2330;background:#f6f7f9}
h1{font-size:24px} h2{font-size:18px;margin-top:32px} code,.text{font-family:ui-monospace,monospace}
.card,.file{background:#fff;border:1px solid #dfe3e8;border-radius:8px;padding:16px;margin:14px 0;overflow:auto}
.pictures{display:flex;gap:12px;align-items:flex-start;flex-wrap:wrap} .pictures img{border-radius:4px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;margin-top:10px}
.learn{background:#c9efd3;border-radius:3px} .span{background:#dbe7ff;border-radius:3px;color:#234a9a}
.bad{color:#a11} .muted{color:#68727f}
table{border-collapse:collapse} td,th{padding:2px 14px 2px 0;text-align:left}
.hists{display:flex;gap:28px;flex-wrap:wrap;align-items:flex-start}
.bar{display:inline-block;height:11px;background:#6d93d8;border-radius:2px}
.pack{display:flex;height:22px;margin:3px 0;background:#eceff3;border-radius:4px;overflow:hidden}
.pack div{border-right:2px solid #fff;font-size:11px;color:#fff;overflow:hidden;padding-left:3px;white-space:nowrap}
"""


def write_report(
    path: str | os.PathLike,
    dataset: MultimodalDataset,
    reports: Sequence[FileReport],
    complaints: Sequence[str],
    *,
    num_cards: int = 12,
    max_tokens: int = 8192,
    seed: int = 0,
) -> None:
    """Write the page.

    Args:
        complaints: all messages; the first 200 are shown.
        num_cards: samples shown, picked at random over the mixture.
        max_tokens: budget of the packs that are drawn.
    """
    wrong = sum(report.num_wrong for report in reports)
    total = sum(report.num_records for report in reports)
    verdict = (
        f"<span class=bad>{wrong} of {total} records can't be trained on</span>"
        if wrong
        else f"all {total} records can be trained on"
    )
    picked = np.random.default_rng(seed).permutation(len(dataset))[:num_cards]
    body = [
        f"<h1>Data check</h1><p>{verdict}; an epoch has {len(dataset)} samples.</p>",
        *[_file(report) for report in reports],
        _packs(reports, max_tokens),
        _complaints(complaints),
        "<h2>Samples</h2><p><span class=learn>green</span> is what the model learns to write, "
        "<span class=span>blue</span> stands for image tokens.</p>",
        *[_card(dataset, int(index)) for index in picked],
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Data check</title><style>{STYLE}</style><body>{''.join(body)}</body></html>"
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def _file(report: FileReport) -> str:
    figures = {"records": report.num_records, "unusable": report.num_wrong, "pictures": report.num_pictures}
    figures |= {name: int(report.column(name).sum()) for name in ("tiles", "tokens", "supervised")}
    cells = "".join(f"<tr><td>{name}<td>{value:,}" for name, value in figures.items())
    reasons = "".join(f"<tr><td class=bad>{reason}<td>{count:,}" for reason, count in report.complaints.most_common())
    hists = "".join(_histogram(name, report.column(name)) for name in ("tokens", "tiles", "turns", "width", "height"))
    return (
        f"<div class=file><b>{html.escape(report.path)}</b><table>{cells}{reasons}</table>"
        f"<div class=hists>{hists}</div></div>"
    )


def _histogram(name: str, values: np.ndarray) -> str:
    bins = histogram(values)
    most = max((count for _, count in bins), default=1)
    rows = "".join(
        f"<tr><td class=muted>{label}<td><span class=bar style='width:{120 * count / most:.0f}px'></span> {count:,}"
        for label, count in bins
    )
    return f"<table><tr><th colspan=2>{name}</th></tr>{rows}</table>" if bins else ""


def _packs(reports: Sequence[FileReport], max_tokens: int) -> str:
    tokens, tiles = (
        np.concatenate([report.column(name) for report in reports] or [np.zeros(0, np.int64)])
        for name in ("tokens", "tiles")
    )
    fits = np.flatnonzero((tokens > 0) & (tokens <= max_tokens))
    if not len(fits):
        return ""
    packs = pack_samples(fits, tokens[fits], tiles[fits], max_tokens=max_tokens)
    bars = []
    for number in range(min(len(packs), 12)):
        parts = []
        for place, index in enumerate(packs[number]):
            colour = f"hsl({210 if tiles[index] else 150} 45% {45 + 8 * (place % 3)}%)"
            parts.append(
                f"<div title='{tokens[index]} tokens, {tiles[index]} tiles' style='background:{colour};"
                f"width:{100 * tokens[index] / max_tokens}%'>{tiles[index]}</div>"
            )
        bars.append(f"<div class=pack>{''.join(parts)}</div>")
    return (
        f"<h2>Packs of {max_tokens} tokens</h2><p>Each bar is a pack, each part a sample as long as its tokens, "
        f"with its number of tiles; green has no picture.</p>{''.join(bars)}"
    )


def _complaints(complaints: Sequence[str]) -> str:
    if not complaints:
        return ""
    shown = "".join(f"<li><code>{html.escape(text)}</code>" for text in complaints[:200])
    more = f"<p class=muted>and {len(complaints) - 200} more</p>" if len(complaints) > 200 else ""
    return f"<h2>Complaints</h2><ul>{shown}</ul>{more}"


def _card(dataset: MultimodalDataset, index: int) -> str:
    number, row = dataset.locate(index)
    source = dataset.sources[number]
    place = html.escape(source.index.source(row))
    try:
        sample, record = dataset.load(number, row), dataset.record(number, row)
        pictures = []
        for medium in record.media:
            if medium.kind == "image":
                picture = load_image(source.folder.resolve(medium.name), dataset.max_pixels)
                text = " ".join(turn.text for turn in record.turns)
                pictures.append(_picture(picture, source.budget.rule, find_boxes(text), record.extra))
    except DataError as error:
        return f"<div class=card><b>{place}</b><p class=bad>{html.escape(str(error))}</p></div>"
    ids, labels = sample["input_ids"].numpy(), sample["labels"].numpy()
    return (
        f"<div class=card><b>{place}</b> <span class=muted>{len(ids)} tokens, {int((labels != -100).sum())} "
        f"supervised, {sample['num_tiles']} tiles</span><div class=pictures>{''.join(pictures)}</div>"
        f"<div class=text>{_text(dataset, ids, labels)}</div></div>"
    )


def _picture(picture: Image.Image, rule, boxes, extra: dict) -> str:
    """The picture with its grid and boxes, and its thumbnail beside it."""
    cols, rows = rule.grid(*picture.size)
    scale = CARD_WIDTH / max(picture.width, 1)
    shown = picture.resize((CARD_WIDTH, max(1, min(900, round(picture.height * scale)))))
    draw = ImageDraw.Draw(shown)
    for col in range(1, cols):
        draw.line([(shown.width * col / cols, 0), (shown.width * col / cols, shown.height)], "#ff2d55", 2)
    for line in range(1, rows):
        draw.line([(0, shown.height * line / rows), (shown.width, shown.height * line / rows)], "#ff2d55", 2)
    frame = (extra.get("width"), extra.get("height")) if extra.get("boxes") == "pixel" else (1000, 1000)
    for x1, y1, x2, y2 in boxes:
        corners = [
            x1 / frame[0] * shown.width,
            y1 / frame[1] * shown.height,
            x2 / frame[0] * shown.width,
            y2 / frame[1] * shown.height,
        ]
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline="#00c853", width=3)
    out = _embed(shown, f"{picture.width}x{picture.height}, {cols}x{rows} tiles")
    if rule.use_thumbnail and cols * rows > 1:
        out += _embed(picture.resize((112, 112)), "thumbnail")
    return out


def _embed(picture: Image.Image, label: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure style='margin:0'><img alt='{label}' src='data:image/jpeg;base64,{data}'>"
        f"<figcaption class=muted>{label}</figcaption></figure>"
    )


def _text(dataset: MultimodalDataset, ids: np.ndarray, labels: np.ndarray) -> str:
    """The tokens as text, run by run: learned, image tokens, or neither."""
    kinds = np.where(labels != -100, 1, np.where(ids == dataset.tokenizer.image_context_id, 2, 0))
    edges = np.flatnonzero(np.diff(kinds)) + 1
    out = []
    for run, kind in zip(np.split(ids, edges), kinds[np.concatenate([[0], edges])], strict=True):
        if kind == 2:
            out.append(f"<span class=span>{len(run)} image tokens</span>")
        else:
            text = html.escape(dataset.tokenizer.decode(run.tolist()))
            out.append(f"<span class=learn>{text}</span>" if kind else text)
    return "".join(out)
