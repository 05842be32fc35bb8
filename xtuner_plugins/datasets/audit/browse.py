"""All checked records, to be filtered, sorted and searched, and shown as cards a few at a time.

Of each record the numbers that are filtered by are held, 22 bytes; texts and images are read when they are asked for.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from .cards import Card, Thumbnails, card
from .check import FileReport
from .findings import Finding, Place
from .looking import Checked
from .texts import script_name

ENTRY = np.dtype(
    [("data", "u1"), ("script", "u1"), *((name, "i4") for name in ("number", "row", "tokens", "tiles", "turns"))]
)
NO_SCRIPT = 255  # of a record that can't be used
MEASURES = ("tokens", "tiles", "turns")
SORTS = ("", "dataset", "reason", "language", *(sign + name for name in MEASURES for sign in ("", "-")))
RANDOM = "-"  # reason of records without one
SEARCH_SECONDS = 0.5  # for a text; then what was found is returned, and the next request goes on
MOST_KEPT = 4  # questions whose order is kept
MOST_CARDS = 100  # of an answer


@dataclass(frozen=True)
class Question:
    """What records are asked for.

    Attributes:
        text: in place, message, names of images or turns, whatever its case.
        dataset, reason, language: as `Browser.choices` names them; "" for any.
        limits: lowest and highest value of each of `MEASURES`, None for none.
        sort: one of `SORTS`.
    """

    text: str = ""
    dataset: str = ""
    reason: str = ""
    language: str = ""
    limits: tuple[tuple[int | None, int | None], ...] = ((None, None),) * len(MEASURES)
    sort: str = ""


class Browser:
    """The records of training and validation data.

    Args:
        everything: each dataset with its reports, training data first.
        findings: about them.

    Attributes:
        choices: names of datasets, reasons and languages, as a page offers them.
    """

    def __init__(self, everything: Sequence[tuple[Checked, Sequence[FileReport]]], findings: Sequence[Finding]):
        self.everything = everything
        self.entries = _entries(everything)
        self.reasons = self._reasons(findings)
        self._rows: dict[str, list[int]] = {}
        for position, reasons in self.reasons.items():
            for reason in reasons:
                self._rows.setdefault(reason, []).append(position)
        self._names = [[source.name for source in dataset.sources] for dataset, _ in everything]
        codes = np.unique(self.entries["script"]).tolist()
        self._scripts = {script_name(code): code for code in codes if code != NO_SCRIPT and code}
        self.choices = {
            "dataset": sorted({name for names in self._names for name in names}),
            "reason": [*sorted(self._rows), RANDOM] if self._rows else [],
            "language": sorted(self._scripts),
        }
        self._orders: OrderedDict[Question, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()  # files are read by one thread at a time

    def __len__(self) -> int:
        return len(self.entries)

    def ask(self, question: Question, after: int = 0, limit: int = 24) -> dict:
        """Cards of the records that are asked for.

        Args:
            after: `next` of the answer before, 0 for the first.
            limit: most cards.

        Returns:
            total: number of records, before the text was searched; next: where the next question goes on, None at the
            end; cards: as `cards.card`, images as data URLs.
        """
        with self._lock:
            order = self._order(question)
            stop, place, shown = time.monotonic() + SEARCH_SECONDS, max(0, after), []
            words = question.text.casefold()
            while place < len(order) and len(shown) < min(limit, MOST_CARDS):
                position = int(order[place])
                if not words or words in self._text(position):
                    shown.append(self._card(position))
                place += 1
                if words and time.monotonic() > stop:
                    break
            return {"total": len(order), "next": place if place < len(order) else None, "cards": shown}

    def _reasons(self, findings: Sequence[Finding]) -> dict[int, list[str]]:
        """Why a record may be looked at, by its position: complaints and warnings, findings that name it."""
        named = [(place, each.kind) for each in findings for example in each.examples for place in example]
        found: dict[int, dict[str, None]] = {}
        for data, (_, reports) in enumerate(self.everything):
            for number, report in enumerate(reports):
                own = np.flatnonzero((self.entries["data"] == data) & (self.entries["number"] == number))
                rows = self.entries["row"][own]
                about = [(each.row, each.reason) for each in report.troubles]
                about += [(place[2], kind) for place, kind in named if place[:2] == (data, number)]
                for row, reason in about:
                    place = int(np.searchsorted(rows, row))
                    if place < len(rows) and rows[place] == row:
                        found.setdefault(int(own[place]), {})[reason] = None
        return {position: list(reasons) for position, reasons in sorted(found.items())}

    def _place(self, position: int) -> Place:
        entry = self.entries[position]
        return int(entry["data"]), int(entry["number"]), int(entry["row"])

    def _card(self, position: int) -> Card:
        place, thumbnails = self._place(position), Thumbnails(None)
        dataset, reports = self.everything[place[0]]
        shown = card(dataset, reports[place[1]], place, self.reasons.get(position, ()), thumbnails)
        for image in shown["images"]:
            image["src"] = thumbnails.sources[image["src"]]
        return shown

    def _text(self, position: int) -> str:
        """What is searched of a record, without regard to case."""
        data, number, row = self._place(position)
        dataset, reports = self.everything[data]
        source = dataset.sources[number]
        parts = [source.index.source(row), source.name]
        parts += [trouble.message for trouble in reports[number].troubles_by_row.get(row, ())]
        try:
            record = dataset.record(number, row)
            parts += [medium.name for medium in record.media] + [turn.text for turn in record.turns]
        except DataError:
            parts.append(str(_raw(source, row)))
        return "\n".join(parts).casefold()

    def _order(self, question: Question) -> np.ndarray:
        """Positions of the records that are asked for, whatever their text."""
        key = Question(**{**vars(question), "text": ""})
        if key not in self._orders:
            self._orders[key] = self._sorted(self._filtered(key), key.sort)
            if len(self._orders) > MOST_KEPT:
                self._orders.popitem(last=False)
        self._orders.move_to_end(key)
        return self._orders[key]

    def _filtered(self, question: Question) -> np.ndarray:
        entries, kept = self.entries, np.ones(len(self.entries), bool)
        if question.dataset:
            kept &= np.isin(self._names_of(), question.dataset)
        if question.language:
            kept &= entries["script"] == self._scripts.get(question.language, NO_SCRIPT - 1)
        if question.reason:
            has = np.zeros(len(entries), bool)
            rows = self.reasons if question.reason == RANDOM else self._rows.get(question.reason, ())
            has[list(rows)] = True
            kept &= ~has if question.reason == RANDOM else has
        for name, (low, high) in zip(MEASURES, question.limits, strict=True):
            if low is not None:
                kept &= entries[name] >= low
            if high is not None:
                kept &= entries[name] <= high
        return np.flatnonzero(kept)

    def _sorted(self, rows: np.ndarray, sort: str) -> np.ndarray:
        name = sort.removeprefix("-")
        if name in MEASURES:
            values = self.entries[name][rows].astype(np.int64)
            return rows[np.argsort(-values if sort.startswith("-") else values, kind="stable")]
        if name == "dataset":
            return rows[np.argsort(self._names_of()[rows], kind="stable")]
        if name == "language":
            names = {code: rank for rank, (_, code) in enumerate(sorted(self._scripts.items()))}
            ranks = np.array([names.get(code, -1) for code in range(256)])
            return rows[np.argsort(ranks[self.entries["script"][rows]], kind="stable")]
        if name == "reason":
            first = sorted((",".join(self.reasons[row]), row) for row in rows.tolist() if row in self.reasons)
            first = np.array([row for _, row in first], rows.dtype)
            return np.concatenate([first, rows[~np.isin(rows, first)]])
        return rows

    def _names_of(self) -> np.ndarray:
        """Name of the file of each record."""
        widest = max(map(len, self._names))
        table = np.array([names + [""] * (widest - len(names)) for names in self._names])
        return table[self.entries["data"], self.entries["number"]]


def _entries(everything: Sequence[tuple[Checked, Sequence[FileReport]]]) -> np.ndarray:
    """A row for each usable record, and for each other one that has a complaint, in the order of files."""
    parts = [np.zeros(0, ENTRY)]
    for data, (_, reports) in enumerate(everything):
        for number, report in enumerate(reports):
            table = report.facts.records
            others = np.setdiff1d([trouble.row for trouble in report.troubles], table["row"])
            part = np.zeros(len(table) + len(others), ENTRY)
            part["data"], part["number"], part["script"] = data, number, NO_SCRIPT
            for name in ("row", "script", *MEASURES):
                part[name][: len(table)] = table[name]
            part["row"][len(table) :] = others
            parts.append(part[np.argsort(part["row"], kind="stable")])
    return np.concatenate(parts)


def _raw(source, row: int) -> object:
    try:
        return source.index.parse(row)
    except DataError:
        return ""
