"""The checker's page: figures of the data, findings, and cards of samples that can be searched, filtered and sorted.

The page is `report.html.jinja`, its script `report.js.jinja`; this module gathers their contents.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...html_page import render
from ..dataset import MultimodalDataset
from ..images.folders import FolderCount
from ..plan.packing import pack_samples
from ..preference import PreferenceDataset
from .cards import MOST_EMBEDDED, Thumbnails, card, pick
from .check import FileReport, count_samples, is_complaint
from .findings import WORDS, Finding, Place
from .looking import Checked
from .reason_words import REASONS, in_chinese, remedy_in_chinese
from .tables import Tables
from .texts import IN_CHINESE

BAR_WIDTH = 110  # px, the longest bar of a histogram
MAX_PACKS = 12
MAX_COMPLAINTS = 200


@dataclass(frozen=True)
class Written:
    """A page: its number of cards, and the folder of their images if they aren't in the page itself."""

    num_cards: int
    folder: Path | None

    def describe_folder(self) -> str:
        """The end of a sentence about the page."""
        return f", its images to {self.folder} (more than {MOST_EMBEDDED} cards)" if self.folder else ""


Validation = Sequence[tuple[Checked, Sequence[FileReport]]]


def write_report(
    path: str | os.PathLike,
    dataset: Checked,
    reports: Sequence[FileReport],
    findings: Sequence[Finding],
    tables: Tables,
    folders: Sequence[FolderCount] = (),
    *,
    validation: Validation = (),
    num_cards: int = 200,
    max_tokens: int = 8192,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write the page; with more than `MOST_EMBEDDED` cards their images go to the folder PAGE_images beside it.

    Args:
        path: the file to write.
        dataset: the checked dataset.
        reports: one per annotation file, in the dataset's order.
        findings: about them (`findings.find`).
        tables: about them (`tables.tabulate`).
        folders: the counts of the image folders.
        validation: datasets that findings name, too, with their reports.
        num_cards: number of random samples to show, from each file in turn, besides those that have a reason.
        max_tokens: budget of the packs that are drawn.
        seed: of the random picks.
        progress: called with the number of cards done since the last call.

    Returns:
        What was written.
    """
    path = Path(path)
    tags = pick(dataset, reports, findings, num_cards, seed)
    folder = path.with_name(f"{path.stem}_images") if len(tags) > MOST_EMBEDDED else None
    thumbnails = Thumbnails(folder)
    everything = [(dataset, reports), *validation]
    cards = []
    for place, reasons in tags.items():
        of, its_reports = everything[place[0]]
        cards.append(card(of, its_reports[place[1]], place, reasons, thumbnails))
        progress(1)
    data = {"cards": cards, "images": thumbnails.sources}
    page = make_page(everything, findings, tables, folders, data, max_tokens)
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)
    return Written(len(cards), folder)


def make_page(
    everything: Validation,
    findings: Sequence[Finding],
    tables: Tables,
    folders: Sequence[FolderCount],
    data: dict[str, Any],
    max_tokens: int,
) -> str:
    """The page's HTML.

    Args:
        everything: training data and validation data, each with its reports.
        data: what its script shows: `cards` and `images`, or `choices` where a server makes the cards.
        findings, tables, folders, max_tokens: as `write_report`.
    """
    dataset, reports = everything[0]
    shown = {card["at"] for card in data.get("cards", ())}
    return render(
        Path(__file__).parent,
        "report.html.jinja",
        num_wrong=sum(report.num_wrong for report in reports),
        num_records=sum(report.num_records for report in reports),
        num_samples=count_samples(dataset, reports),
        has_tokens=isinstance(dataset, MultimodalDataset),
        files=_files(dataset, reports),
        folders=folders,
        details=_details(dataset, reports),
        packs=_packs(reports, max_tokens),
        reasons=_reasons(reports),
        findings=_findings(findings, everything, shown if "cards" in data else None),
        **vars(tables),
        answer_lengths=_bars(tables.answers["lengths"]),
        has_pairs=isinstance(dataset, PreferenceDataset),
        is_served="cards" not in data,
        has_cards="cards" not in data or bool(data["cards"]),
        data={**data, "words": _words(), "languages": IN_CHINESE},
    )


def _words() -> dict[str, tuple[str, str]]:
    """What cards call reasons and findings, in English and Chinese."""
    reasons = {reason: (reason, words[0]) for reason, words in REASONS.items()}
    return {**reasons, **{kind: words[:2] for kind, words in WORDS.items()}}


def as_json(
    dataset: Checked,
    reports: Sequence[FileReport],
    findings: Sequence[Finding],
    tables: Tables,
    validation: Validation = (),
) -> dict[str, Any]:
    """The numbers of the page's tables and findings, for programs to read."""
    everything = [(dataset, reports), *validation]
    found = [
        {
            "kind": each.kind,
            "count": each.count,
            "total": each.total,
            "where": dict(each.where),
            "examples": [[_source(everything, place) for place in example] for example in each.examples],
        }
        for each in findings
    ]
    of_answers = {key: value for key, value in tables.answers.items() if key != "lengths"}
    return {"findings": found, **vars(tables), "answers": of_answers}


def _source(everything: Validation, place: Place) -> str:
    data, number, row = place
    return everything[data][0].sources[number].index.source(row)


def _findings(findings: Sequence[Finding], everything: Validation, shown: set[str] | None) -> list[dict[str, Any]]:
    """Findings as the page shows them; `shown` are the records with a card, None for all."""
    found = []
    for each in findings:
        examples = [[_source(everything, place) for place in example] for example in each.examples]
        found.append(
            {
                "kind": each.kind,
                "words": WORDS[each.kind],
                "count": each.count,
                "total": each.total,
                "where": each.where.most_common(12),
                "examples": examples,
                "has_cards": shown is None or any(at in shown for example in examples for at in example),
            }
        )
    return found


def _reasons(reports: Sequence[FileReport]) -> list[dict[str, Any]]:
    """Complaints and warnings by reason, complaints and the most frequent first, with remedy and examples."""
    found: dict[tuple[bool, str], dict[str, Any]] = {}
    for report in reports:
        for trouble in report.troubles:
            if trouble.reason == "rejected":
                continue
            key = is_complaint(trouble), trouble.reason
            group = found.setdefault(
                key,
                {
                    "reason": key[1],
                    "in_chinese": in_chinese(key[1]),
                    "is_bad": key[0],
                    "count": 0,
                    "remedy": trouble.remedy,
                    "remedy_in_chinese": remedy_in_chinese(key[1], trouble.remedy),
                    "messages": [],
                },
            )
            group["count"] += 1
            if len(group["messages"]) < MAX_COMPLAINTS:
                group["messages"].append(trouble.message.removesuffix(f"; {trouble.remedy}"))
    return sorted(found.values(), key=lambda group: (not group["is_bad"], -group["count"]))


def _column(reports: Sequence[FileReport], name: str) -> np.ndarray:
    return np.concatenate([report.column(name) for report in reports] or [np.zeros(0, np.int64)])


def _files(dataset: Checked, reports: Sequence[FileReport]) -> list[dict]:
    """A row of sums per file, and one over several files."""
    rows = [_sums(source.name, [report]) for source, report in zip(dataset.sources, reports, strict=True)]
    return rows + [_sums("", reports)] if len(reports) > 1 else rows


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


def _details(dataset: Checked, reports: Sequence[FileReport]) -> list[dict]:
    """Histograms per file; of several files first those of all together."""
    alone = len(reports) == 1
    details = [
        {"name": source.name, "path": report.path, "columns": _histograms([report]), "opened": alone}
        for source, report in zip(dataset.sources, reports, strict=True)
    ]
    together = {"name": "", "path": "", "columns": _histograms(reports), "opened": True}
    return details if alone else [together, *details]


def _histograms(reports: Sequence[FileReport]) -> list[dict]:
    names = ("tokens", "tiles", "turns", "width", "height")
    return [{"name": name, "bins": _bars(_column(reports, name))} for name in names]


def log_bins(values: np.ndarray) -> list[tuple[str, int]]:
    """(range, count) of bins for whole numbers: one per number below 8, then two per doubling."""
    if not len(values):
        return []
    edges = [*range(8), *(size for power in range(3, 40) for size in (1 << power, 3 << (power - 1)))]
    places = np.searchsorted(edges, values, side="right") - 1
    first, counts = int(places.min()), np.bincount(places - places.min())
    last = int(values.max())
    bins = []
    for place, count in enumerate(counts, first):
        low, high = edges[place], min(edges[place + 1] - 1, last)
        bins.append((f"{low:,}" if low == high else f"{low:,}–{high:,}", int(count)))
    return bins


def _bars(values: np.ndarray) -> list[tuple[str, int, int]]:
    """(range, count, width in px) of logarithmic bins, with bars as long as the count's logarithm."""
    bins = log_bins(values) if values.any() else []
    most = np.log2(1 + max((count for _, count in bins), default=1))
    return [(label, count, round(BAR_WIDTH * np.log2(1 + count) / most)) for label, count in bins]


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
