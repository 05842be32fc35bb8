"""Intervals and tests of figures, against scipy's own and against what is known."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from xtuner_plugins.evaluation.confidence import difference, interval, mcnemar, resampled, score_interval
from xtuner_plugins.evaluation.metrics import find_metric

METRIC = find_metric("exact_match")


def tally(scores):
    return np.stack([np.asarray(scores, float), np.ones(len(scores))], axis=-1)


def alone(scores):
    return [[index] for index in range(len(scores))]


def test_the_interval_of_a_mean_is_scipys():
    scores = np.random.default_rng(1).random(200) < 0.7
    low, high = score_interval(METRIC, tally(scores), alone(scores))
    other = bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    # Ends of a percentile interval scatter by about a point with 2000 draws; one question is half a point.
    assert low == pytest.approx(100 * other.low, abs=1.5) and high == pytest.approx(100 * other.high, abs=1.5)
    assert score_interval(METRIC, tally(scores), alone(scores)) == (low, high), "seeded"


def test_questions_that_count_together_are_drawn_together():
    scores = np.repeat([1, 0] * 25, 4)
    groups = [list(range(start, start + 4)) for start in range(0, 200, 4)]
    assert set(resampled([tally(scores)], groups)[0][:, 1]) == {200}
    by_group, by_question = (
        np.diff(score_interval(METRIC, tally(scores), units))[0] for units in (groups, alone(scores))
    )
    assert by_group == pytest.approx(2 * by_question, rel=0.1)  # fifty independent units, not two hundred


def test_one_unit_has_no_interval():
    assert score_interval(METRIC, tally([1, 0]), [[0, 1]]) is None
    assert difference(METRIC, tally([1, 0]), tally([1, 1]), [[0, 1]]) is None


def test_a_paired_difference_is_surer_than_two_intervals():
    one = np.random.default_rng(3).random(300) < 0.5
    other = one | (np.random.default_rng(4).random(300) < 0.1)
    (low, high), p = difference(METRIC, tally(one), tally(other), alone(one))
    gained = 100 * (other.mean() - one.mean())
    assert 0 < low < gained < high and p < 0.01
    assert score_interval(METRIC, tally(one), alone(one))[1] > 100 * other.mean()
    (low, high), p = difference(METRIC, tally(one), tally(one), alone(one))
    assert low == high == 0 and p == 1


def test_mcnemar():
    """The exact test is a binomial one: 1 of 9 is 2 * (1 + 9) / 2 ** 9."""
    assert mcnemar(1, 8) == mcnemar(8, 1) == pytest.approx(2 * 10 / 2**9)
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1


def test_the_interval_is_the_middle():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
