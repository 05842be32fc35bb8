"""Figures and how sure they are; a folder of results is read as it was written, and damaged ones are named."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest, bootstrap

from xtuner_plugins.evaluation.benchmarks import DataSet
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.metrics import METRICS
from xtuner_plugins.evaluation.results import (
    Measured,
    aligned,
    clusters,
    measure,
    middle,
    read_results,
    summary,
    table,
    versions,
    write_results,
)
from xtuner_plugins.inference.questions import Question, Unusable


def measured(scores, metric="exact_match", images=None, **facts):
    """Questions of which those with a score of 1 are answered right, about these images."""
    paths = [() if images is None else (images[n],) for n in range(len(scores))]
    items = [Item(Question(str(n), "?", own, own), ("yes",), facts) for n, own in enumerate(paths)]
    return Measured("own", METRICS[metric], items, ["yes" if score else "no" for score in scores])


def test_the_interval_of_a_share_is_exact():
    for right, asked in ((0, 7), (7, 7), (3, 7), (1, 1), (140, 200)):
        exact = binomtest(right, asked).proportion_ci(method="exact")
        interval = measured([1] * right + [0] * (asked - right)).interval
        assert interval == pytest.approx((100 * exact.low, 100 * exact.high)) and interval[1] - interval[0] > 5


def test_questions_about_an_image_are_drawn_together():
    scores = np.random.default_rng(1).random(200) < 0.7
    repeated, images = np.repeat(scores, 4), np.repeat([f"{n}.png" for n in range(200)], 4)
    low, high = measured(repeated, images=images).interval
    other = bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    # Ends of a percentile interval scatter by about a point with 2000 draws; one question is half a point.
    assert (low, high) == pytest.approx((100 * other.low, 100 * other.high), abs=1.5)
    assert measured(repeated, images=images).interval == (low, high), "seeded"
    assert measured([1, 0], images=["a.png", "a.png"]).interval is None
    low, high = measured([1] * 8, images=["a.png", "b.png"] * 4).interval
    assert (low, high) == pytest.approx((100 * binomtest(2, 2).proportion_ci().low, 100)), "two images tell little"


def test_scores_that_are_no_shares_have_no_interval_of_width_0():
    low, high = measured([0, 0, 0, 0], "yes_no").interval
    assert low == 0 and 20 < high < 100
    low, high = measured([1, 1, 1, 1], "yes_no").interval
    assert high == 100 and 0 < low < 80
    low, high = measured([1, 1, 1, 1], "cer").interval
    assert low == 0 and high > 20


def test_draws_that_are_all_equal_leave_what_nobody_saw_on_both_sides():
    unseen = 100 * binomtest(0, 10).proportion_ci().high
    assert middle(np.full(100, 50.0), 10, 0, 100) == pytest.approx((50 - unseen, 50 + unseen))
    assert middle(np.full(100, 50.0), 10, 45, 55) == (45, 55)


def test_clusters():
    facts = [("a", None), ("b", None), ("c", "g"), (None, "g"), (None, None), ("b", None), (None, None)]
    items = [
        Item(Question(str(n), "?", (), (image,) if image else ()), (), {"group": group} if group else {})
        for n, (image, group) in enumerate(facts)
    ]
    items[0] = Item(Question("0", "?", (), ("a", "b")), ())
    assert clusters(items).tolist() == [0, 0, 1, 1, 2, 0, 3]


@pytest.fixture()
def found(tmp_path):
    Image.new("RGB", (336, 224)).save(tmp_path / "a.png")
    question = Question("a", "Which color? 颜色", ("a.png",), (str(tmp_path / "a.png"),))
    gone = Question("b", "And this?", ("b.png",), (str(tmp_path / "b.png"),))
    items = [
        Item(question, ("red", "rot"), {"category": "color"}),
        Item(gone, ("x",), {"category": "shape"}),
        Item(Question("c", "?"), ("y",)),
        Item(Question("d", "?"), ("never answered",)),
    ]
    return measure("own", METRICS["exact_match"], items, {"a": "Rot", "b": "a\u2028\x85b", "c": "y", "other": "red"})


def test_written_read_and_shown(found, tmp_path):
    rows = found.rows
    assert [row.score for row in rows] == [1, 0, 1]
    left_out = [Unusable("d", "own.jsonl:4: no answer")]
    own = summary(found, DataSet("own", "own.jsonl", found.metric, found.items, left_out, "1"))
    assert own["score"] == pytest.approx(200 / 3) and own["num_left_out"] == 1
    asked = measure("asked", None, found.items[:1], {"a": "x"})
    assert asked.scores == [None] and asked.headline is None and asked.interval is None
    only = summary(asked, DataSet("asked", "asked.jsonl", None, []))
    data_sets = {"own": own, "asked": only}
    write_results(tmp_path, {"model": {"model": "m"}, "versions": versions(), "datasets": data_sets}, rows)
    again, read = read_results(tmp_path)
    assert read == rows and again["datasets"]["own"]["figures"] == found.figures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "items.jsonl", "results.json"]
    assert [line.split() for line in aligned(table(data_sets)).splitlines()] == [
        "data set metric score 95 % interval questions left out".split(),
        "own exact_match: accuracy 66.7 9.4 to 99.2 3 1".split(),
        "color 100.0".split(),
        "shape 0.0".split(),
        "asked answers alone 1".split(),
    ]


def test_nothing_answered(found):
    empty = measure("own", METRICS["exact_match"], found.items, {})
    assert empty.scores == [] and empty.headline is None and empty.interval is None and empty.figures == {}


def test_what_is_no_folder_of_results_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no results.json; give the --out folder of a finished"):
        read_results(tmp_path)
    for content in ("{", "[]", json.dumps({"model": {}, "datasets": {"a": {}}})):
        (tmp_path / "results.json").write_text(content)
        (tmp_path / "items.jsonl").write_text("")
        with pytest.raises(ValueError, match=r"can't be read .* run tools/evaluate.py again"):
            read_results(tmp_path)
