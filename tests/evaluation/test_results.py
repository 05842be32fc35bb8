"""Figures and how sure they are; a folder of results is read as it was written, and damaged ones are named."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from xtuner_plugins.evaluation import results
from xtuner_plugins.evaluation.benchmarks import DataSet
from xtuner_plugins.evaluation.metrics import METRICS
from xtuner_plugins.inference.questions import Question, Unusable


def measured(scores, metric="exact_match", images=None, **facts):
    """Questions of which those with a score of 1 are answered right, about these images."""
    paths = [() if images is None else (images[n],) for n in range(len(scores))]
    items = [Question(str(n), "?", own, own, ("yes",), facts) for n, own in enumerate(paths)]
    answers = {str(n): "yes" if score else "no" for n, score in enumerate(scores)}
    return results.measure(DataSet("own", "own.jsonl", METRICS[metric], items), answers)


def test_intervals_are_exact_and_never_of_width_0():
    for right, asked in ((0, 7), (7, 7), (3, 7), (1, 1), (140, 200)):
        exact = binomtest(right, asked).proportion_ci(method="exact")
        interval = measured([1] * right + [0] * (asked - right)).interval
        assert interval == pytest.approx((100 * exact.low, 100 * exact.high)) and interval[1] - interval[0] > 5
    unseen = 100 * binomtest(0, 4).proportion_ci().high  # of what four questions didn't show
    for metric, score, interval in (("yes_no", 1, (100 - unseen, 100)), ("cer", 1, (0, unseen))):
        assert measured([score] * 4, metric).interval == pytest.approx(interval), metric
    assert results.middle(np.full(100, 50.0), 4, 45, 55) == (45, 55)
    low, high = results.middle(np.linspace(200 / 3, 200 / 3 + 1e-13, 100), 9, 0, 100)  # equal but for rounding
    unseen = 100 * binomtest(0, 9).proportion_ci().high
    assert (low, high) == pytest.approx((200 / 3 - unseen, 100))


def test_questions_about_an_image_or_of_a_group_are_drawn_together():
    scores = np.random.default_rng(1).random(200) < 0.7
    repeated, images = np.repeat(scores, 4), np.repeat([f"{n}.png" for n in range(200)], 4)
    found = measured(repeated, images=images).interval
    other = bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    # Ends of a percentile interval scatter by about a point with 2000 draws; one question is half a point.
    assert found == pytest.approx((100 * other.low, 100 * other.high), abs=1.5)
    assert measured(repeated, images=images).interval == found, "seeded"
    assert measured([1, 0], images=["a.png", "a.png"]).interval is None
    low, high = measured([1] * 8, images=["a.png", "b.png"] * 4).interval
    assert (low, high) == pytest.approx((100 * binomtest(2, 2).proportion_ci().low, 100)), "two images tell little"
    facts = [("ab", {}), ("b", {}), ("c", {"group": "g"}), ("", {"group": "g"}), ("", {}), ("b", {}), ("", {})]
    items = [Question(str(n), "?", (), tuple(images), facts=own) for n, (images, own) in enumerate(facts)]
    assert results.clusters(items).tolist() == [0, 0, 1, 1, 2, 0, 3]


def test_written_read_and_shown(tmp_path):
    items = [
        Question("a", "Which color? 颜色", ("a.png",), ("/images/a.png",), ("red", "rot"), {"category": "color"}),
        Question("b", "And this?", (), (), ("x",), {"category": "shape"}),
        Question("c", "?", expected=("y",), place="own.jsonl:3"),
        Question("d", "?", expected=("never answered",)),
    ]
    whole = DataSet("own", "own.jsonl", METRICS["exact_match"], items, [Unusable("d", "own.jsonl:4: no answer")], "1")
    found = results.measure(whole, {"a": "Rot", "b": "a\u2028\x85b", "c": "y", "other": "red"})
    own = results.summary(found, whole)
    assert [row.score for row in found.rows] == [1, 0, 1] and own["score"] == pytest.approx(200 / 3)
    asked = results.measure(unscored := DataSet("asked", "asked.jsonl", None, items[:1]), {"a": "x"})
    assert asked.scores == [None] and asked.headline is None and asked.interval is None
    data_sets = {"own": own, "asked": results.summary(asked, unscored)}
    results.write_results(tmp_path, {"model": {"model": "m"}, "datasets": data_sets}, found.rows)
    again, rows = results.read_results(tmp_path)
    assert "颜色" in (tmp_path / "items.jsonl").read_text(encoding="utf-8")  # to read and to search
    assert rows == found.rows and again["datasets"]["own"]["figures"] == found.figures
    assert [" ".join(line.split()) for line in results.aligned(results.table(data_sets)).splitlines()] == [
        "data set metric score 95 % interval questions left out",
        "own exact_match: accuracy 66.7 9.4 to 99.2 3 1",
        *("color 100.0", "shape 0.0", "asked answers alone 1"),
    ]
    empty = results.measure(whole, {})
    assert empty.scores == [] and empty.headline is None and empty.interval is None


def test_what_is_no_folder_of_results_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no results.json; give the --out folder of a finished"):
        results.read_results(tmp_path)
    for content in ("{", "[]", json.dumps({"model": {}, "datasets": {"a": {}}})):
        (tmp_path / "results.json").write_text(content)
        (tmp_path / "items.jsonl").write_text("")
        with pytest.raises(ValueError, match=r"can't be read .* run tools/evaluate.py again"):
            results.read_results(tmp_path)
