"""Published figures: MME's scores of InternLM-XComposer-VL (InternLM/InternLM-XComposer, eval_mm/mme/MME_Bench.md)."""

import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.evaluation.metrics.mme import CATEGORIES, Mme, said


@pytest.mark.parametrize(
    "answer, meaning",
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, it is", "yes"),
        ("It is not", ""),  # only the first four characters count
        ("True", "yes"),
        ("不是", "no"),
        ("是的", "yes"),
        ("", ""),
        ("\nNo", "no"),
    ],
)
def test_answers_as_the_script_reads_them(answer, meaning):
    assert said(answer) == meaning


def pairs(make_item, category, images):
    return [
        make_item(text, category=category, group=f"{category}/{number}")
        for number in range(images)
        for text in ("Yes", "No")
    ]


def test_published_scores_follow_from_counts(make_item):
    """Existence: 60 questions about 30 images. 190.0 is 58 right (96.67) and 28 images (93.33)."""
    items = pairs(make_item, "existence", 30)
    answers = [item.expected[0] for item in items]
    answers[0], answers[5] = "No", "Yes"
    figures = Mme().figures(answers, items)
    assert figures["score/existence"] == pytest.approx(190.0)
    assert figures["accuracy/existence"] == pytest.approx(100 * 58 / 60)
    assert figures["accuracy_plus/existence"] == pytest.approx(100 * 28 / 30)


def test_sums(make_item):
    items = [item for category in CATEGORIES for item in pairs(make_item, category, 2)]
    figures = Mme().figures([item.expected[0] for item in items], items)
    assert (figures["perception"], figures["cognition"], figures["total"]) == (2000, 800, 2800)
    assert Mme().headline_of(Mme().tally(["yes"] * len(items), items).sum(axis=0)) == 14 * 50
    assert len(Mme().units(items)) == 28


def test_an_image_with_one_question_is_counted_apart(make_item):
    items = pairs(make_item, "count", 2)[:3]
    figures = Mme().figures(["Yes", "Yes", "Yes"], items)
    assert figures["incomplete_images"] == 1
    assert figures["accuracy/count"] == pytest.approx(200 / 3) and figures["accuracy_plus/count"] == 0


@pytest.mark.parametrize(
    "expected, facts, message",
    [
        ("Yes", {"category": "colour", "group": "1"}, "category 'colour'; MME has existence, "),
        ("Yes", {"group": "1"}, "category None"),
        ("Yes", {"category": "color"}, "no group; give the two questions"),
        ("red", {"category": "color", "group": "1"}, "neither yes nor no"),
    ],
)
def test_refused(expected, facts, message, make_item):
    with pytest.raises(RecordError, match=message):
        Mme().check(make_item(expected, **facts))
