"""Published examples: the tests of AXLearn's VQA metric (apple/axlearn, axlearn/vision/metrics_vqa_test.py)."""

import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.evaluation.metrics.vqa_accuracy import VqaAccuracy, normalize


@pytest.mark.parametrize(
    "text, expected",
    [
        ("n/a", "n"),
        ("no one", "no 1"),
        ("02/12/2011", "02 12 2011"),
        ("333-3333", "333 3333"),
        ("20+", "20"),
        ("6 fifty-five", "6 fifty 5"),
        ("8 - 2", "8 2"),
        ("none", "0"),
        ("a", ""),
        ("", ""),
        ("horse, man", "horse man"),
        ("june 29, 2013", "june 29 2013"),
        ("streamers_and_fake_records", "streamers and fake records"),
        ("hammer time!", "hammer time"),
        ("???", ""),
        ("someone", "someone"),
        ("don't shoot", "don't shoot"),
    ],
)
def test_published_normalization(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Dont  Stop", "don't stop"),  # the contractions of the official table
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("The man's hat.", "man 's hat"),
        ("3.5 cm.", "3.5 cm"),
        ("100,978", "100978"),
        ("2:50 pm", "2:50 pm"),
        ("t-shirt - red", "tshirt red"),  # a mark beside a space once is removed everywhere
        ("back\\slash", "back slash"),
        ("中文，答案", "中文，答案"),
        ("a\tb\nc", "b c"),
    ],
)
def test_official_rules(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    "answer, said, score",
    [
        ("down", "down down table/stake down table down down down down board".split(), 1.0),
        ("1", "3 3 3 1 3 3 3 1 1 1".split(), 1.0),
        ("100", ["about 100", "100", "0", "0", "thousands", "1", "0", "100", "many", "unknown"], 0.6),
        ("lots", "50 lots 60 several 55 many 78 36 2000 50".split(), 0.3),
        ("toilet paper", ["toilet paper"] * 3 + ["nothing"] * 4 + ["paper", "handle", "valve"], 0.9),
        ("a", ["a"] * 10, 1.0),
        ("", ["yes"] * 10, 0.0),
    ],
)
def test_published_accuracies(answer, said, score, make_item):
    item = make_item(*said)
    VqaAccuracy().check(item)
    assert VqaAccuracy().score(answer, item) == pytest.approx(score)


def test_other_than_ten_annotators_are_refused(make_item):
    with pytest.raises(RecordError, match=r"own.jsonl:1 \(q1\): 3 answers; VQA accuracy .* exact_match"):
        VqaAccuracy().check(make_item("a", "b", "c"))
