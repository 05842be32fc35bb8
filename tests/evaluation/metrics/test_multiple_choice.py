"""Letters as VLMEvalKit reads them (open-compass/VLMEvalKit, vlmeval/utils/matching_util.py)."""

import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.evaluation.metrics.multiple_choice import MultipleChoice, chosen_letter

CHOICES = {"A": "apple", "B": "a red bus", "C": "corn"}


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("b", None),  # a small letter is a word
        ("B.", "B"),
        ("(C)", "C"),
        ("**C**", "C"),
        ("Answer: B", "B"),
        ("The answer is B. a red bus", "B"),  # among the last four words of the cleaned text
        ("A man in front of the house", None),  # "A" too far from the end, and no text of a choice
        ("It shows corn", "C"),
        ("apple or corn", None),
        ("A or B", None),
        ("Z", None),
        ("Z apple", None),
        ("", None),
        ("中文", None),
        ("I think that it is a very long explanation of why the corn is the right one here", None),  # too long
    ],
)
def test_letters(answer, letter):
    assert chosen_letter(answer, CHOICES) == letter


def test_rotations_count_together(make_item):
    items = [
        make_item("A", choices={"A": "cat", "B": "dog"}, group="1", category="animals"),
        make_item("C", choices={"A": "x", "B": "y", "C": "z"}, category="letters"),
        make_item("B", choices={"A": "dog", "B": "cat"}, group="1", category="animals"),
    ]
    metric = MultipleChoice()
    assert metric.figures(["A", "C", "A"], items) == pytest.approx(
        {"accuracy": 50, "accuracy/animals": 0, "accuracy/letters": 100, "accuracy_single": 200 / 3, "unclear": 0}
    )
    assert metric.figures(["cat", "hm", "B"], items)["accuracy/animals"] == 100
    assert metric.figures(["cat", "hm", "B"], items)["unclear"] == pytest.approx(100 / 3)
    assert metric.scores(["A", "C", "A"], items) == [1, 1, 0]


def test_without_groups_there_is_one_accuracy(make_item):
    items = [make_item("A", choices={"A": "cat", "B": "dog"}) for _ in range(2)]
    assert MultipleChoice().figures(["A", "B"], items) == {"accuracy": 50, "unclear": 0}


@pytest.mark.parametrize(
    "expected, facts, message",
    [
        (["A"], {}, "no choices; give them"),
        (["A"], {"choices": {"a": "x"}}, "no choices; give them"),
        (["D"], {"choices": CHOICES}, r"the answer \['D'\] is none of the letters A, B, C; correct it"),
        (["A", "B"], {"choices": CHOICES}, "none of the letters"),
    ],
)
def test_refused(expected, facts, message, make_item):
    with pytest.raises(RecordError, match=message):
        MultipleChoice().check(make_item(*expected, **facts))
