"""The published example is the test of Pix2Struct's metrics (google-research/pix2struct,
pix2struct/metrics_test.py)."""

import pytest

from xtuner_plugins.evaluation.metrics.relaxed_accuracy import RelaxedAccuracy


def test_published_example(make_item):
    answers = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
    items = [make_item(text) for text in ("abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't")]
    assert RelaxedAccuracy().figures(answers, items) == {"relaxed_accuracy": 62.5}


@pytest.mark.parametrize(
    "answer, expected, right",
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("-95", "-100", True),
        ("14%", "14", False),  # the published rule: 0.14
        ("0.14", "14%", True),
        ("0", "0", True),
        ("0.0", "0", False),  # texts are compared where the right number is 0
        ("1,000", "1000", False),
        ("nan", "nan", True),
        ("inf", "inf", True),
        ("inf", "5", False),
        ("YES ", "yes", True),
        ("", "5", False),
        ("%", "5", False),
    ],
)
def test_numbers_may_be_five_percent_off(answer, expected, right, make_item):
    assert RelaxedAccuracy().score(answer, make_item("other", expected)) is right
