"""Answers measured, and the folder of results that one run writes and comparisons read.

::

    DIR/answers.jsonl    every answer, appended as it came (`run.py`)
    DIR/items.jsonl      one line per answered question: question, expected, answer, score
    DIR/results.json     settings, hashes, versions, figures by data set
    DIR/report.html      the same to look at
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import write_whole
from ..inference.questions import Question
from .benchmarks import DataSet
from .metrics import Metric, share

ANSWERS, ITEMS, RESULTS, REPORT = "answers.jsonl", "items.jsonl", "results.json", "report.html"
PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "numpy")
DRAWS = 2000  # of the bootstrap, always the same
_AT_A_TIME = 50  # draws; bounds the memory of a large set
Interval = tuple[float, float]


class Row(NamedTuple):
    """One answered question: its data set's name, the model's answer, and the score, None without a metric."""

    dataset: str
    question: Question
    answer: str
    score: float | None


def clusters(questions: Sequence[Question]) -> np.ndarray:
    """The cluster of each question `[questions]`: those share one that have an image or a `group` in common."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    keys: dict[tuple[str, str], int] = {}
    pairs = []
    for position, question in enumerate(questions):
        group = question.facts.get("group")
        own = [("image", path) for path in question.paths] + ([] if group is None else [("group", str(group))])
        pairs += [(position, len(questions) + keys.setdefault(key, len(keys))) for key in own]
    size, edges = len(questions) + len(keys), np.array(pairs, dtype=int).reshape(-1, 2).T
    labels = connected_components(coo_matrix((np.ones(edges.shape[1]), edges), (size, size)), directed=False)[1]
    return np.unique(labels[: len(questions)], return_inverse=True)[1]


def are_trials(sums: np.ndarray) -> bool:
    """Whether each cluster is one trial that succeeds or fails: exact tests and intervals hold."""
    return sums.shape[1] == 1 and bool((sums[..., 1] == 1).all() and np.isin(sums[..., 0], (0, 1)).all())


def draw(*sums: np.ndarray) -> list[np.ndarray]:
    """Headlines `[DRAWS]` of sets of as many clusters drawn with replacement; the same clusters for all models."""
    random, number = np.random.default_rng(0), len(sums[0])
    found: list[list[np.ndarray]] = [[] for _ in sums]
    for _ in range(DRAWS // _AT_A_TIME):
        counts = random.multinomial(number, np.full(number, 1 / number), size=_AT_A_TIME)
        for part, one in zip(found, sums, strict=True):
            part.append(share(np.tensordot(counts, one, axes=1)))
    return [np.concatenate(part) for part in found]


def middle(drawn: np.ndarray, number: int, low: float, high: float) -> Interval:
    """The middle 95 % of draws from `number` clusters, within `low` and `high`.

    Where all draws are equal, as at 0 and 100 %, what no cluster showed may still be: the interval then reaches to both
    sides as far as the exact binomial one for 0 of `number`.
    """
    from scipy.stats import binomtest

    ends = np.percentile(drawn, (2.5, 97.5))
    if np.isclose(*ends):  # equal but for rounding
        unseen = 100 * binomtest(0, number).proportion_ci().high
        ends = ends[0] - unseen, ends[1] + unseen
    return max(low, float(ends[0])), min(high, float(ends[1]))


@dataclass(frozen=True)
class Measured:
    """Answered questions of one data set under its metric; without one there are answers alone.

    Attributes:
        name: Of the data set.
        metric: What measures it, or None.
        questions: Those that have an answer.
        answers: To each of them.
    """

    name: str
    metric: Metric | None
    questions: Sequence[Question]
    answers: Sequence[str]

    @cached_property
    def scores(self) -> list[float | None]:
        """Of each answer."""
        pairs = zip(self.answers, self.questions, strict=True)
        return [None if self.metric is None else float(self.metric.score(*pair)) for pair in pairs]

    @cached_property
    def figures(self) -> dict[str, float]:
        """As `Metric.figures`; none without answers or metric."""
        return self.metric.figures(self.answers, self.questions) if self.metric and self.questions else {}

    @property
    def rows(self) -> list[Row]:
        """Its questions, one by one."""
        return [Row(self.name, *each) for each in zip(self.questions, self.answers, self.scores, strict=True)]

    @property
    def headline(self) -> float | None:
        """The figure by which models are compared."""
        return self.figures.get(self.metric.headline) if self.metric else None

    @cached_property
    def sums(self) -> np.ndarray:
        """Parts and wholes of the headline `[clusters, C, 2]`."""
        tally, cluster = self.metric.tally(self.answers, self.questions), clusters(self.questions)
        sums = np.zeros((cluster.max() + 1, *tally.shape[1:]))
        np.add.at(sums, cluster, tally)
        return sums

    @cached_property
    def interval(self) -> Interval | None:
        """Of the headline at 95 %: exact for shares of independent questions, else by bootstrap over clusters."""
        from scipy.stats import binomtest

        if self.figures and are_trials(self.sums):
            exact = binomtest(int(self.sums[:, 0, 0].sum()), len(self.sums)).proportion_ci()
            return 100 * float(exact.low), 100 * float(exact.high)
        if not self.figures or len(self.sums) < 2:
            return None
        return middle(draw(self.sums)[0], len(self.sums), 0, 100 if self.metric.higher_is_better else np.inf)


def measure(data_set: DataSet, answers: Mapping[str, str]) -> Measured:
    """Measures those questions of a data set that have an answer, given by their id."""
    answered = [question for question in data_set.questions if question.id in answers]
    return Measured(data_set.name, data_set.metric, answered, [answers[question.id] for question in answered])


def versions() -> dict[str, str]:
    """Python's and those of the packages that answers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def summary(measured: Measured, data_set: DataSet) -> dict[str, Any]:
    """What results.json says of one data set."""
    found = {"path": data_set.path, "hash": data_set.hash}
    if metric := measured.metric:
        found |= {key: getattr(metric, key) for key in ("headline", "higher_is_better")} | {"metric": metric.name}
        found |= {"score": measured.headline, "interval": measured.interval, "figures": measured.figures}
    left_out = [each.message for each in data_set.left_out]
    return found | {"num_answered": len(measured.questions), "num_left_out": len(left_out), "left_out": left_out}


def write_results(folder: Path, results: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes items.jsonl, then results.json; each is replaced whole."""
    lines = []
    for row in rows:
        line = {**row._asdict(), **asdict(row.question)}
        line["question"] = line.pop("text")
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_whole(folder / ITEMS, lambda path: path.write_text("".join(lines), encoding="utf-8"))
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RESULTS, lambda path: path.write_text(text, encoding="utf-8"))


def read_results(folder: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """What `write_results` wrote.

    Raises:
        ValueError: It isn't such a folder, or one of the files was damaged; says which.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {RESULTS}; give the --out folder of a finished tools/evaluate.py")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        path = Path(folder) / ITEMS
        with open(path, encoding="utf-8") as file:  # str.splitlines would also end a line at U+2028 in an answer
            rows = [_row(**json.loads(line)) for line in file]
        _ = results["model"], [each["hash"] for each in results["datasets"].values()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = "run tools/evaluate.py again"
        raise ValueError(f"{path} can't be read ({type(error).__name__}: {error}); {told}") from None
    return results, rows


def _row(dataset: str, answer: str, score: float | None, question: str, facts: Mapping, id: str, **own: Any) -> Row:
    texts = {key: tuple(own[key]) for key in ("images", "paths", "expected")}
    return Row(dataset, Question(id, question, facts=facts, place=own.get("place", ""), **texts), answer, score)


def table(data_sets: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A head, a row per data set of results.json, and one per category where it has several."""
    rows = [("data set", "metric", "score", "95 % interval", "questions", "left out")]
    for name, found in data_sets.items():
        counts = (f"{found['num_answered']:,}", f"{found['num_left_out']:,}" if found["num_left_out"] else "")
        if "metric" not in found:
            rows.append((name, "answers alone", "", "", *counts))
            continue
        headline = found["headline"]
        rows.append((name, named(found), number(found["score"]), between(found["interval"]), *counts))
        parts = {key: value for key, value in found["figures"].items() if key.startswith(f"{headline}/")}
        if len(parts) > 1:
            rows += [(f"  {key.partition('/')[2]}", "", number(value), "", "", "") for key, value in parts.items()]
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'<' if column < 2 else '>'}{width}}}" for column, width in enumerate(widths))
    return "\n".join(form.format(*row).rstrip() for row in rows)


def named(found: Mapping[str, Any]) -> str:
    """Metric and headline of a data set of results.json."""
    return f"{found['metric']}: {found['headline']}" + ("" if found["higher_is_better"] else " (lower is better)")


def number(value: float | None) -> str:
    """A score, or a dash where nothing was answered."""
    return "-" if value is None else f"{value:.1f}"


def between(interval: Interval | None) -> str:
    """An interval, or a dash where there is none."""
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
