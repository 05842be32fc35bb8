"""The page of the check: figures, complaints, findings, and cards of samples that can be searched.

The page is one file, `page.html.jinja`, with its images in it; nothing is loaded from elsewhere.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.dataset import MultimodalDataset
from ..errors import DataError
from ..html_page import render
from .cards import embed_tiles, pictures, shorten, token_runs, turn_runs
from .check import Checked, FileReport, count_samples, stops
from .findings import MOST_EXAMPLES, WORDS, Finding, Held, Place
from .tables import shares, what_if

MOST_MESSAGES = 200  # of each reason
NUM_CARDS = 100  # of random samples

Tags = dict[Place, list[str]]


def write_page(
    path: str | os.PathLike,
    dataset: Checked,
    reports: Sequence[FileReport],
    findings: Sequence[Finding],
    validation: Held = (),
) -> int:
    """Write the page; returns its number of cards.

    Args:
        dataset, reports: the training data, and what `check_dataset` returned.
        findings: of `findings.find`.
        validation: as `findings.find` got it.
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
    """The numbers of the page, for programs to read."""
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


def pick(dataset: Checked, reports: Sequence[FileReport], findings: Sequence[Finding], seed: int = 0) -> Tags:
    """The records that get a card, each with the reasons for it: complaints, findings, or none for a random sample."""
    tags: Tags = {}
    for number, report in enumerate(reports):
        for reason in dict.fromkeys(each.reason for each in report.found):
            for complaint in [each for each in report.found if each.reason == reason][:MOST_EXAMPLES]:
                tags.setdefault((0, number, complaint.row), []).append(reason)
    for finding in findings:
        for place in {place: None for example in finding.examples for place in example}:
            tags.setdefault(place, []).append(finding.kind)
    for place in _random(dataset, reports, seed):
        tags.setdefault(place, [])
    return dict(sorted(tags.items()))


def _random(dataset: Checked, reports: Sequence[FileReport], seed: int) -> list[Place]:
    """Random usable samples of an epoch, taken from the files in turn."""
    rng, found = np.random.default_rng(seed), []
    for number, (rows, report) in enumerate(zip(dataset.picks, reports, strict=True)):
        usable = rng.permutation(np.intersect1d(rows, report.records["row"]))[:NUM_CARDS].tolist()
        found += [(turn, (0, number, row)) for turn, row in enumerate(usable)]
    return [place for _, place in sorted(found)[:NUM_CARDS]]


def _card(dataset: Checked, reports: Sequence[FileReport], place: Place, reasons: Sequence[str]) -> dict[str, Any]:
    """What the page shows of a record."""
    data, number, row = place
    report, source = reports[number], dataset.sources[number]
    complaints = [each for each in report.found if each.row == row]
    shown: dict[str, Any] = {
        "at": source.index.source(row),
        "dataset": source.name,
        "is_held_out": data > 0,
        "reasons": reasons,
        "messages": list(map(report.message, complaints)),
        "is_bad": any(map(stops, complaints)),
        "facts": {},
        "pictures": [],
        "tiles": [],
    }
    try:
        record = dataset.record(number, row)
        shown["runs"] = turn_runs(record)
        shown["pictures"] = pictures(dataset.measuring(number), record)
        if isinstance(dataset, MultimodalDataset):
            shown |= _as_trained(dataset, dataset.load(number, row))
    except DataError as error:
        shown["messages"] = shown["messages"] or [str(error)]  # it has changed since it was checked
        shown.setdefault("runs", shorten([("plain", _raw(source.index, row))]))
    return shown


def _as_trained(dataset: MultimodalDataset, sample: dict) -> dict[str, Any]:
    ids, labels = sample["input_ids"].numpy(), sample["labels"].numpy()
    facts = {"tokens": len(ids), "learned": int((labels >= 0).sum()), "tiles": len(sample["tiles"])}
    runs = token_runs(dataset.tokenizer, ids, labels, sample.get("branches", ()))
    return {"facts": facts, "tiles": embed_tiles(sample["tiles"]), "runs": runs}


def _raw(index: Any, row: int) -> str:
    """A record that can't be used, as its file has it."""
    try:
        return index.read(row).decode("utf-8", "replace") if hasattr(index, "read") else repr(index.parse(row))
    except DataError as error:
        return str(error)


def _reasons(reports: Sequence[FileReport]) -> list[dict[str, Any]]:
    """Complaints and warnings by reason, complaints and the most frequent first, with remedy and examples."""
    found: dict[tuple[bool, str], dict[str, Any]] = {}
    pairs = [(report, each) for report in reports for each in report.found if each.reason != "rejected"]
    for report, each in pairs:
        empty = {"reason": each.reason, "is_bad": stops(each), "count": 0, "messages": [], "remedy": each.remedy}
        group = found.setdefault((stops(each), each.reason), empty)
        group["count"] += 1
        if len(group["messages"]) < MOST_MESSAGES:
            group["messages"].append(report.message(each).removesuffix(f"; {each.remedy}"))
    return sorted(found.values(), key=lambda group: (not group["is_bad"], -group["count"]))
