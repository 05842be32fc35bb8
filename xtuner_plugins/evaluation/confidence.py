"""How sure is a figure? Percentile bootstrap over the units of a set, and McNemar's test for two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metric import Metric

LEVEL = 0.95
DRAWS = 2000
SEED = 0
_AT_A_TIME = 50  # draws; bounds the memory of a large set


def resampled(tallies: Sequence[np.ndarray], units: Sequence[Sequence[int]], *, draws: int = DRAWS) -> np.ndarray:
    """Sums over sets of as many units as there are, drawn with replacement; the same units for every tally.

    Args:
        tallies: `Metric.tally` of one model or several on the same items, each [items, K].
        units: Item positions that are drawn together.
        draws: Number of sets; their random numbers are always the same.

    Returns:
        float64 [tallies, draws, K].
    """
    rows = np.stack([[tally[list(unit)].sum(axis=0) for unit in units] for tally in tallies])  # [tallies, units, K]
    random, number = np.random.default_rng(SEED), len(units)
    parts = []
    for start in range(0, draws, _AT_A_TIME):
        counts = random.multinomial(number, np.full(number, 1 / number), size=min(_AT_A_TIME, draws - start))
        parts.append(counts @ rows)
    return np.concatenate(parts, axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle `LEVEL` of bootstrapped values."""
    outside = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, (outside, 100 - outside))
    return float(low), float(high)


def score_interval(metric: Metric, tally: np.ndarray, units: Sequence[Sequence[int]]) -> tuple[float, float] | None:
    """The interval of a headline; None where one unit alone tells nothing about others."""
    if len(units) < 2:
        return None
    return interval(metric.headline_of(resampled([tally], units)[0]))


def difference(
    metric: Metric, one: np.ndarray, other: np.ndarray, units: Sequence[Sequence[int]]
) -> tuple[tuple[float, float], float] | None:
    """The interval of `other` minus `one` on the same items, and its two-sided p-value; None for a single unit.

    The p-value is twice the share of draws whose difference is on the rarer side of 0, zeros counted on both.
    """
    if len(units) < 2:
        return None
    drawn = metric.headline_of(resampled([one, other], units))
    found = drawn[1] - drawn[0]
    tail = min((found <= 0).sum(), (found >= 0).sum())
    return interval(found), float(min(1.0, 2 * (tail + 1) / (len(found) + 1)))


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact p-value of McNemar's test: how likely so uneven a split of the questions that one alone gets right is.

    Args:
        only_one: Questions that the first model alone answers right.
        only_other: Those of the second alone.
    """
    from scipy.stats import binomtest

    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0
