"""The checker's page: one self-contained HTML file to look at before training.

A table of the files with histograms, packs as bars, complaints, and cards of samples: the pictures with tile grid and
boxes, the thumbnail, a video's frames, and the text as the model gets it, with what it learns from in colour.
"""

import base64
import html
import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .boxes import find_boxes
from .check import FileReport, histogram
from .dataset import MultimodalDataset
from .errors import DataError
from .media import load_image
from .packing import pack_samples
from .tiling import DynamicTiling
from .video import load_frames

CARD_WIDTH, CARD_HEIGHT = 440, 360  # px, at most, of a picture on a card
CARD_HALF = 290  # px wide when there are several
SMALL = 120  # px of a thumbnail or a frame
MOST_PACKS = 12
MOST_COMPLAINTS = 200
STYLE = """
:root{--ink:#1c2330;--soft:#647082;--page:#f5f6f8;--paper:#fff;--line:#dde2e8;--bar:#6d93d8;--bad:#b3141d;
--learn:#c9efd3;--learn-ink:#0d3b1a;--span:#dbe7ff;--span-ink:#234a9a;--empty:#e6eaef}
@media(prefers-color-scheme:dark){:root{--ink:#dfe4ea;--soft:#93a0b0;--page:#14171c;--paper:#1d2229;--line:#313842;
--bar:#5b84cf;--bad:#ff8087;--learn:#1e4a2b;--learn-ink:#c8f2d3;--span:#213a66;--span-ink:#bcd3ff;--empty:#2a3039}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;margin:0 auto;
max-width:1240px;padding:24px 20px 60px;color:var(--ink);background:var(--page)}
h1{font-size:25px;margin:0} h2{font-size:18px;margin:34px 0 8px} p{margin:6px 0}
code,.text{font-family:ui-monospace,"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace}
.card,.file{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:16px;margin:12px 0}
.scroll{overflow-x:auto} .path{overflow-wrap:anywhere} .bad{color:var(--bad)} .soft{color:var(--soft)}
table{border-collapse:collapse} td,th{padding:3px 18px 3px 0;text-align:left;white-space:nowrap}
.sums td,.sums th{text-align:right} .sums td:first-child,.sums th:first-child{text-align:left}
.sums tr+tr td{border-top:1px solid var(--line)} th{font-weight:600;color:var(--soft)}
summary{cursor:pointer;color:var(--soft)} details{margin:4px 0}
.hists{display:flex;gap:12px 34px;flex-wrap:wrap;align-items:flex-start}
.hists table{font-size:13px;line-height:1.25} .hists td{padding:1px 10px 1px 0} .hists th{padding-top:10px}
.bar{display:inline-block;height:10px;background:var(--bar);border-radius:2px;vertical-align:baseline}
.row{display:flex;gap:10px;align-items:center;margin:4px 0} .row>span{width:52px;text-align:right;font-size:13px}
.pack{display:flex;flex:1;height:24px;background:var(--empty);border-radius:4px;overflow:hidden}
.pack div{border-right:2px solid var(--page);font-size:11px;line-height:24px;color:#fff;overflow:hidden;
padding-left:4px;white-space:nowrap}
.complaints{padding:8px 16px;list-style:none;font-size:13px} .complaints li{margin:5px 0;overflow-wrap:anywhere}
.sample{display:flex;gap:20px;align-items:flex-start;margin-top:12px}
.pictures{flex:0 1 auto;max-width:600px;display:flex;gap:10px;flex-wrap:wrap;align-items:flex-start}
figure{margin:0;max-width:100%} figcaption{color:var(--soft);font-size:13px}
img{display:block;max-width:100%;height:auto;border-radius:5px}
.text{flex:1;min-width:0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;line-height:1.6;color:var(--soft)}
.learn{background:var(--learn);color:var(--learn-ink);border-radius:3px;padding:1px 2px}
.span{background:var(--span);color:var(--span-ink);border-radius:3px;padding:1px 4px}
@media(max-width:760px){body{padding:16px 10px 40px} .card,.file{padding:12px} .sample{flex-direction:column}
.pictures{max-width:100%} .text{width:100%}}
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
        num_cards: samples shown, picked at random, from each file in turn.
        max_tokens: budget of the packs that are drawn.
    """
    wrong = sum(report.num_wrong for report in reports)
    total = sum(report.num_records for report in reports)
    verdict = (
        f"<span class=bad>{wrong:,} of {total:,} records can't be trained on</span>"
        if wrong
        else "Every record can be trained on"
    )
    body = [
        f"<h1>Data check</h1><p>{verdict}; an epoch has {len(dataset):,} samples.</p>",
        _files(dataset, reports),
        _packs(reports, max_tokens),
        _complaints(complaints),
        "<h2>Samples</h2><p><span class=learn>green</span> is what the model learns to write, "
        "<span class=span>blue</span> stands for a picture's tokens, red lines are where it is cut into tiles.</p>",
        *[_card(dataset, number, row) for number, row in _pick(dataset, reports, num_cards, seed)],
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta name=color-scheme content='light dark'>"
        f"<title>Data check</title><style>{STYLE}</style><body>{''.join(body)}</body></html>"
    )
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)


def _pick(
    dataset: MultimodalDataset, reports: Sequence[FileReport], num_cards: int, seed: int
) -> list[tuple[int, int]]:
    """(file, record) of random usable samples, a file after the other, so that each is seen."""
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


def _files(dataset: MultimodalDataset, reports: Sequence[FileReport]) -> str:
    """What is in each file and in all of them: a row of sums, and histograms."""
    heads = ("file", "records", "unusable", "pictures", "tiles", "tokens", "learned", "longest")
    named = list(zip([source.name for source in dataset.sources], reports, strict=True))
    details = []
    if len(reports) > 1:
        details.append(_details("all files", reports, "", opened=True))
        rows = [_sums(name, [report]) for name, report in named] + [_sums("all files", reports)]
    else:
        rows = [_sums(*pair) for pair in ((name, [report]) for name, report in named)]
    for name, report in named:
        reasons = "".join(
            f" &middot; <span class=bad>{count:,} {reason}</span>" for reason, count in report.complaints.most_common()
        )
        about = f"<span class=path>{html.escape(report.path)}</span>{reasons}"
        details.append(_details(name, [report], about, opened=len(reports) == 1))
    return (
        f"<div class='file scroll'><table class=sums><tr>{''.join(f'<th>{name}' for name in heads)}</tr>"
        f"{''.join(rows)}</table></div><div class=file>{''.join(details)}</div>"
    )


def _column(reports: Sequence[FileReport], name: str) -> np.ndarray:
    return np.concatenate([report.column(name) for report in reports] or [np.zeros(0, np.int64)])


def _sums(name: str, reports: Sequence[FileReport]) -> str:
    tokens, wrong = _column(reports, "tokens"), sum(report.num_wrong for report in reports)
    cells = (
        f"{sum(report.num_records for report in reports):,}",
        f"<span class=bad>{wrong:,}</span>" if wrong else "0",
        f"{sum(report.num_pictures for report in reports):,}",
        f"{_column(reports, 'tiles').sum():,}",
        f"{tokens.sum():,}",
        f"{_column(reports, 'supervised').sum() / max(tokens.sum(), 1):.1%}",
        f"{tokens.max(initial=0):,}",
    )
    return f"<tr><td>{html.escape(name)}{''.join(f'<td>{cell}' for cell in cells)}</tr>"


def _details(name: str, reports: Sequence[FileReport], about: str, opened: bool) -> str:
    hists = "".join(_histogram(column, _column(reports, column)) for column in ("tokens", "tiles", "turns"))
    hists += "".join(_histogram(f"{side} of the first picture", _column(reports, side)) for side in ("width", "height"))
    return (
        f"<details{' open' if opened else ''}><summary><b>{html.escape(name)}</b> {about}</summary>"
        f"<div class=hists>{hists}</div></details>"
    )


def _histogram(name: str, values: np.ndarray) -> str:
    bins = histogram(values)
    most = max((count for _, count in bins), default=1)
    rows = "".join(
        f"<tr><td class=soft>{label}<td><span class=bar style='width:{110 * count / most:.0f}px'></span>"
        f"{f' {count:,}' if count else ''}"
        for label, count in bins
    )
    return f"<table><tr><th colspan=2>{name}</th></tr>{rows}</table>" if bins else ""


def _packs(reports: Sequence[FileReport], max_tokens: int) -> str:
    tokens, tiles = _column(reports, "tokens"), _column(reports, "tiles")
    fits = np.flatnonzero((tokens > 0) & (tokens <= max_tokens))
    if not len(fits):
        return ""
    packs = pack_samples(fits, tokens[fits], tiles[fits], max_tokens=max_tokens)
    bars = []
    for number in range(min(len(packs), MOST_PACKS)):
        parts = []
        for place, index in enumerate(packs[number]):
            colour = f"hsl({210 if tiles[index] else 150} 42% {38 + 7 * (place % 3)}%)"
            parts.append(
                f"<div title='{tokens[index]} tokens, {_tiles(tiles[index])}' style='background:{colour};"
                f"width:{100 * tokens[index] / max_tokens}%'>{tiles[index]}</div>"
            )
        full = tokens[list(packs[number])].sum() / max_tokens
        bars.append(f"<div class=row><div class=pack>{''.join(parts)}</div><span class=soft>{full:.1%}</span></div>")
    shown = f"The first {MOST_PACKS} of {len(packs):,}. " if len(packs) > MOST_PACKS else ""
    return (
        f"<h2>Packs of {max_tokens:,} tokens</h2><p>{shown}Each bar is a pack, each part a sample as long as its "
        f"tokens, with its number of tiles; green has no picture.</p>{''.join(bars)}"
    )


def _complaints(complaints: Sequence[str]) -> str:
    if not complaints:
        return ""
    shown = "".join(f"<li><code>{html.escape(text)}</code>" for text in complaints[:MOST_COMPLAINTS])
    rest = len(complaints) - MOST_COMPLAINTS
    more = f"<p class=soft>and {rest:,} more</p>" if rest > 0 else ""
    return f"<h2>Complaints</h2><ul class='file complaints'>{shown}</ul>{more}"


def _card(dataset: MultimodalDataset, number: int, row: int) -> str:
    source = dataset.sources[number]
    place = f"<b class=path>{html.escape(source.index.source(row))}</b>"
    try:
        sample = dataset.load(number, row)
        ids, labels = sample["input_ids"].numpy(), sample["labels"].numpy()
        pictures = "".join(_media(dataset, number, row, ids))
    except DataError as error:
        return f"<div class=card>{place}<p class=bad>{html.escape(str(error))}</p></div>"
    return (
        f"<div class=card>{place} <span class=soft>{html.escape(source.name)} &middot; {len(ids):,} tokens, "
        f"{int((labels != -100).sum()):,} learned, {_tiles(sample['num_tiles'])}</span><div class=sample>"
        f"{f'<div class=pictures>{pictures}</div>' if pictures else ''}"
        f"<div class=text>{_text(dataset, ids, labels)}</div></div></div>"
    )


def _media(dataset: MultimodalDataset, number: int, row: int, ids: np.ndarray) -> Iterator[str]:
    """Figures of a sample's pictures and videos, in order, as far as they are in it."""
    source, record = dataset.sources[number], dataset.record(number, row)
    lengths = _span_lengths(ids, dataset.tokenizer.image_context_id)
    boxes = find_boxes(" ".join(turn.text for turn in record.turns))
    for medium in record.media:
        path = source.folder.resolve(medium.name)
        if medium.kind == "video":
            for place, frame in enumerate(load_frames(path, dataset.num_frames, dataset.max_pixels)[: len(lengths)]):
                frame.thumbnail((SMALL, SMALL))
                yield _embed(frame, f"Frame-{place + 1}")
                lengths.pop(0)
        elif lengths:
            picture = load_image(path, dataset.max_pixels)
            yield _picture(
                picture,
                source.budget.rule,
                lengths.pop(0) // source.budget.tokens_per_tile,
                boxes,
                record.extra,
                CARD_WIDTH if len(record.media) == 1 else CARD_HALF,
            )


def _span_lengths(ids: np.ndarray, context_id: int) -> list[int]:
    """Image tokens of each picture: the lengths of the runs of them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ids == context_id, [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def _picture(picture: Image.Image, rule: DynamicTiling, num_tiles: int, boxes, extra: dict, width: int) -> str:
    """The picture with the grid of its tiles and boxes, and its thumbnail beside it."""
    thumbnail = rule.use_thumbnail and num_tiles > 1
    cols, rows = rule.limited(num_tiles - thumbnail).grid(*picture.size)
    scale = min(width / picture.width, CARD_HEIGHT / picture.height)
    shown = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
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
    out = _embed(shown, f"{picture.width}x{picture.height}, {_tiles(cols * rows, f'{cols}x{rows}')}")
    if thumbnail:
        out += _embed(picture.resize((SMALL, SMALL)), "thumbnail")
    return out


def _tiles(number: int, shown: str = "") -> str:
    return f"{shown or number} tile{'' if number == 1 else 's'}"


def _embed(picture: Image.Image, label: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><img alt='{label}' width={picture.width} height={picture.height} "
        f"src='data:image/jpeg;base64,{data}'><figcaption>{label}</figcaption></figure>"
    )


def _text(dataset: MultimodalDataset, ids: np.ndarray, labels: np.ndarray) -> str:
    """The tokens as text, run by run: learned, image tokens, or neither."""
    kinds = np.where(labels != -100, 1, np.where(ids == dataset.tokenizer.image_context_id, 2, 0))
    edges = np.flatnonzero(np.diff(kinds)) + 1
    out = []
    for run, kind in zip(np.split(ids, edges), kinds[np.concatenate([[0], edges])], strict=True):
        if kind == 2:
            out.append(f"<span class=span>{len(run):,} image tokens</span>")
        else:
            text = html.escape(dataset.tokenizer.decode(run.tolist()))
            out.append(f"<span class=learn>{text}</span>" if kind else text)
    return "".join(out).rstrip("\n")
