"""The published example is the test of Pix2Struct's metrics (google-research/pix2struct,
pix2struct/metrics_test.py)."""

import pytest

from xtuner_plugins.evaluation.metrics.anls import Anls


def test_published_example(make_item):
    answers = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
    items = [make_item(text) for text in ("abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't")]
    assert Anls().figures(answers, items) == pytest.approx({"anls": 47.5})


@pytest.mark.parametrize(
    "answer, expected, score",
    [
        ("itc  Limited\n", ["ITC Limited"], 1.0),
        ("$2,000", ["$2000"], 1 - 1 / 6),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("ab", ["ax"], 0.5),  # exactly the threshold counts
        ("abc", ["xyc"], 0.0),
        ("", ["x"], 0.0),
        ("2022", ["the year", "2022"], 1.0),
        ("東京", ["東京都"], 1 - 1 / 3),
    ],
)
def test_the_nearest_answer_counts_from_the_threshold_on(answer, expected, score, make_item):
    assert Anls().score(answer, make_item(*expected)) == pytest.approx(score)
