"""The table that the terminal shows."""

from xtuner_plugins.evaluation.table import table

FOUND = {
    "metric": "exact_match",
    "headline": "accuracy",
    "score": 50.04,
    "interval": (40.0, 60.26),
    "num_answered": 1234,
    "num_left_out": 0,
    "figures": {"accuracy": 50.04, "accuracy/color": 75.0, "accuracy/count": 25.0, "unclear": 0.0},
}


def test_a_line_per_data_set_and_category():
    none = {**FOUND, "score": None, "interval": None, "num_answered": 0, "num_left_out": 3, "figures": {}}
    lines = table({"own": FOUND, "none": none}).splitlines()
    assert lines == [
        "data set  metric                 score  95 % interval  questions  left out",
        "own       exact_match: accuracy   50.0   40.0 to 60.3      1,234",
        "  color                           75.0",
        "  count                           25.0",
        "none      exact_match: accuracy      -              -          0         3",
    ]
