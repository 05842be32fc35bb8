"""Tables about a mixture: its share of the budget, languages, answers, and what other limits would do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..dataset import MultimodalDataset
from ..plan.lengths import DROPPED, FATES, SHRUNK, TRUNCATED
from .check import FileReport
from .facts import joined
from .looking import Checked
from .phrases import frequent_phrases
from .texts import opening_of, script_name

MOST_FREQUENT = 12  # answers and first words that are named
FACTORS = (0.5, 1, 2, 4)  # of max_length
TILES = (1, 4, 6, 12)  # besides the setting's own max_tiles

Row = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """What the functions of this module return; `what_if` is empty without a model."""

    shares: list[Row]
    languages: list[Row]
    answers: Row
    what_if: list[Row]


def tabulate(dataset: Checked, reports: Sequence[FileReport], **options) -> Tables:
    """All tables.

    Args:
        options: `num_workers` and `progress` of `MultimodalDataset.lengths`, where lengths aren't measured yet.
    """
    others = what_if(dataset, **options) if isinstance(dataset, MultimodalDataset) else []
    return Tables(shares(dataset, reports), languages(dataset, reports), answers(dataset, reports), others)


def shares(dataset: Checked, reports: Sequence[FileReport]) -> list[Row]:
    """Samples, tokens, supervised tokens and tiles of an epoch by file, after `repeat_times`, with their shares."""
    rows = []
    for source, pick, report in zip(dataset.sources, dataset.picks, reports, strict=True):
        table = report.facts.records
        times = np.bincount(pick, minlength=report.num_records)[table["row"]]
        sums = {name: int((table[name] * times.astype(np.int64)).sum()) for name in ("tokens", "supervised", "tiles")}
        rows.append(
            {"name": source.name, "repeat": getattr(source, "repeat", 1.0), "samples": int(times.sum()), **sums}
        )
    for name in ("samples", "tokens", "supervised", "tiles"):
        total = sum(row[name] for row in rows)
        for row in rows:
            row[f"{name}_share"] = row[name] / total if total else 0.0
    return rows


def languages(dataset: Checked, reports: Sequence[FileReport]) -> list[Row]:
    """Records by script, and how they are spread over the files; the most frequent first."""
    counts: dict[int, Counter] = {}
    for source, report in zip(dataset.sources, reports, strict=True):
        for code, count in zip(*np.unique(report.facts.records["script"], return_counts=True), strict=True):
            counts.setdefault(int(code), Counter())[source.name] += int(count)
    total = max(1, sum(counter.total() for counter in counts.values()))
    rows = [
        {
            "name": script_name(code),
            "in_chinese": script_name(code, in_chinese=True),
            "count": counter.total(),
            "share": counter.total() / total,
            "files": dict(counter),
        }
        for code, counter in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["count"])


def answers(dataset: Checked, reports: Sequence[FileReport]) -> Row:
    """Lengths of answers in words, the most frequent answers, first words and phrases, with their shares."""
    table, numbers = joined([report.facts.answers for report in reports])
    if not len(table):
        nothing = {"words": {}, "frequent": [], "openings": [], "phrases": [], "num_read": 0}
        return {"count": 0, "lengths": np.zeros(0, np.int64), **nothing}
    quantiles = dict(
        zip(("median", "p90", "p99", "max"), np.percentile(table["words"], [50, 90, 99, 100]), strict=True)
    )
    found: Row = {"count": len(table), "words": {"mean": float(table["words"].mean()), **quantiles}}
    for key, name, of in (("answer", "frequent", str.strip), ("opening", "openings", opening_of)):
        keys, first, counts = np.unique(table[key], return_index=True, return_counts=True)
        rows = []
        for place in np.argsort(-counts, kind="stable")[:MOST_FREQUENT]:
            if counts[place] > 1:
                where = first[place]
                record = dataset.record(int(numbers[where]), int(table["row"][where]))
                text = of(record.turns[int(table["turn"][where])].text)
                rows.append({"text": text[:120], "count": int(counts[place]), "share": counts[place] / len(table)})
        found[name] = rows
    named, found["num_read"] = frequent_phrases(dataset, reports)
    found["phrases"] = [
        {
            "text": each.text,
            "count": each.count,
            "share": each.count / found["num_read"],
            "at": dataset.sources[each.place[0]].index.source(each.place[1]),
        }
        for each in named
    ]
    found["lengths"] = table["words"].astype(np.int64)
    return found


def what_if(dataset: MultimodalDataset, **options) -> list[Row]:
    """What another `max_length` or `max_tiles` would do to an epoch, from the measured lengths alone.

    Each row has the setting, whether it is the current one, and samples that train, shrink, are cut or left out, with
    tokens and tiles of the epoch.

    Args:
        options: `num_workers` and `progress` of `MultimodalDataset.lengths`.
    """
    budget, own = dataset.budget, max(source.tiling.max_tiles for source in dataset.sources)
    lengths = sorted({max(1, int(budget.max_length * factor)) for factor in FACTORS})
    rows = []
    for max_length in lengths:
        for max_tiles in sorted({*TILES, own}):
            total = np.zeros(len(FATES), np.int64)
            tokens = tiles = 0
            for number, source in enumerate(dataset.sources):
                tiling = source.tiling
                if max_tiles != own:  # a file with limits of its own keeps lower ones
                    tiling = replace(
                        tiling,
                        min_tiles=min(tiling.min_tiles, max_tiles),
                        max_tiles=max_tiles if tiling.max_tiles == own else min(max_tiles, tiling.max_tiles),
                    )
                index = dataset.lengths(number, **options)
                columns = index.lay_out(tiling, replace(budget, max_length=max_length), keep=False)
                times = np.bincount(dataset.picks[number], minlength=len(index)).astype(np.int64)
                times[list(dataset.rejected[number])] = 0
                total += np.bincount(columns[2], times, len(FATES)).astype(np.int64)
                tokens, tiles = tokens + int(columns[0] @ times), tiles + int(columns[1] @ times)
            rows.append(
                {
                    "max_length": max_length,
                    "max_tiles": max_tiles,
                    "is_current": (max_length, max_tiles) == (budget.max_length, own),
                    "samples": int(total[:DROPPED].sum()),
                    "shrunk": int(total[SHRUNK]),
                    "cut": int(total[TRUNCATED]),
                    "too_long": int(total[DROPPED]),
                    "tokens": tokens,
                    "tiles": tiles,
                }
            )
    return rows
