"""Each metric on published examples, and what all of them must do."""

import re

import numpy as np
import pytest

from xtuner_plugins.evaluation.metrics import METRICS, chosen_letter, find_box, normalize, overlap, says_no, share
from xtuner_plugins.inference.questions import Question

# Metric: right answers and facts of an item that it can measure.
FITTING = {
    "vqa_accuracy": (["red"] * 10, {}),
    "multiple_choice": (["A"], {"choices": {"A": "red", "B": "blue"}}),
    "yes_no": (["yes"], {}),
    "iou": (["<box>[[0, 0, 500, 500]]</box>"], {}),
}
HOSTILE = ["", " ", "\n", "é中文🙂", "a" * 5000, "[" * 300, "(1," * 200, "nan", "inf%", "-", "\0", "[[1e999, 0, 1, 1]]"]
CHOICES = {"A": "apple", "B": "a red bus", "C": "corn"}


def make_item(*expected, **facts):
    return Question("q1", "?", (), (), expected, facts)


def test_what_every_metric_does():
    """Any answer has a finite score and figures; right ones are as good as can be; the headline is of added rows."""
    for name, metric in METRICS.items():
        expected, facts = FITTING.get(name, (["a red sign"], {}))
        items = [make_item(*expected, **facts, category="abc"[n % 3]) for n in range(len(HOSTILE))]
        assert all(0 <= metric.score(answer, items[0]) <= 1 for answer in HOSTILE), name
        for answers in (HOSTILE, [expected[0]] * len(items)):
            figures, rows = metric.figures(answers, items), metric.tally(answers, items)
            assert all(type(value) is float and np.isfinite(value) for value in figures.values()), name
            assert rows.dtype == float and rows.shape[0] == len(items) and rows.shape[2] == 2
            assert share(rows.sum(axis=0)) == pytest.approx(figures[metric.headline])
            assert f"{metric.headline}/c" in figures
        assert figures[metric.headline] == (100.0 if metric.higher_is_better else 0.0), name
        for item in (make_item(), make_item("")):
            assert metric.problem(item) is not None, name


SCORES = [  # metric, right answers, answers with their scores
    ("exact_match", ["yes", "été"], {" YES\n": 1, "yes.": 0, "the yes": 0, "": 0, "ÉTÉ": 1}),
    ("mentions", ["12", "Twelve"], {" 7 + 5 = 12.": 1, "It is TWELVE!": 1, "12, of course": 1, "答案是12。": 1}),
    ("mentions", ["12", "Twelve"], {"no\n12": 0, "112": 0, "12.5": 0, "1.12": 0, "12th": 0, "twelvefold": 0, "": 0}),
    ("mentions", ["星期四", "C++"], {"是星期四。": 1, "c++": 1}),
    ("anls", ["ITC Limited", "2022"], {"itc  Limited\n": 1, "2022": 1}),
    ("anls", ["$2000"], {"$2,000": 1 - 1 / 6}),
    ("anls", ["ax"], {"ab": 0.5, "abc": 0}),  # exactly the threshold counts
    ("relaxed_accuracy", ["other", "100"], {"105": 1, "105.1": 0, "1,00": 0, "100%": 0}),
    ("relaxed_accuracy", ["-100", "14%"], {"-95": 1, "0.14": 1, "14": 0}),
    ("relaxed_accuracy", ["0", "nan", "yes"], {"0": 1, "0.0": 0, "nan": 1, "inf": 0, "YES ": 1, "%": 0}),
    # the tests of AXLearn's VQA metric (apple/axlearn, axlearn/vision/metrics_vqa_test.py)
    ("vqa_accuracy", "down down table/stake down table down down down down board".split(), {"down": 1}),
    ("vqa_accuracy", "50 lots 60 several 55 many 78 36 2000 50".split(), {"lots": 0.3}),
    ("vqa_accuracy", ["toilet paper"] * 3 + ["nothing"] * 4 + ["paper", "handle", "valve"], {"toilet paper": 0.9}),
    ("cer", ["招牌上"], {" 招牌\n": 2 / 3, "much too long": 0}),
    ("cer", ["zzz", "abc"], {"abd": 2 / 3}),  # the nearest
]


def test_scores():
    for name, expected, answers in SCORES:
        item = make_item(*expected)
        assert METRICS[name].problem(item) is None
        found = {answer: METRICS[name].score(answer, item) for answer in answers}
        assert found == pytest.approx(answers), (name, expected)


NORMALIZED = {
    # AXLearn's
    "n/a": "n", "no one": "no 1", "02/12/2011": "02 12 2011", "6 fifty-five": "6 fifty 5", "8 - 2": "8 2",
    "none": "0", "june 29, 2013": "june 29 2013", "hammer time!": "hammer time", "???": "",
    # the official table and rules
    "Dont  Stop": "don't stop", "couldntve": "couldntve", "couldn'tve": "couldn't've", "somebody'd": "somebodyd",
    "The man's hat.": "man 's hat", "3.5 cm.": "3.5 cm", "a\tb\nc": "b c",
    "t-shirt- red": "tshirt red", "t-shirt -red": "tshirt red",
}  # fmt: skip
LETTERS = {  # open-compass/VLMEvalKit, vlmeval/utils/matching_util.py
    "B": "B", "b": None, "(C)": "C", "**C**": "C", "It shows corn": "C", "apple or corn": None, "A or B": None,
    "The answer is B. a red bus": "B",  # among the last four words of the cleaned text
    "A man in the house": None,  # "A" too far from the end, and no text of a choice
    "Z apple": None, "中文": None,
    "I think that it is a very long explanation of why the corn is the right one here": None,  # too long
}  # fmt: skip
# `evaluate.py` of AoiDragon/POPE, repeated in OpenGVLab/InternVL, internvl_chat/eval/pope/eval_pope.py
NO = {"No": 1, "no, it is green": 1, "There is not a dog.": 1, "Yes. There is no doubt": 0, "NO": 0, "": 0}


HALF = (0.1, 0.2, 0.5, 0.6)
LONG = "[" + ", ".join(["1" * 300] * 4) + " x"  # what a model in a loop may write
BOXES = {
    HALF: ["<ref>the bus</ref><box>[[100, 200, 500, 600]]</box>", "<box>(100,200),(500,600)</box>"]
    # decoding drops the tags; the first counts
    + ["[[100, 200, 500, 600]] or [[0, 0, 1, 1]]", "(100,200),(500,600)", "[0.1, .2, 0.5, 0.6]"],
    (0, 0, 0.001, 0.001): ["<box>[[0, 0, 1, 1]]</box>"],
    (0.001,) * 4: ["[1, 1, 1, 1]"],
    None: ["no box", "[1, 2, 3]", "[1, 2, 3, 4", "[a, b, c, d]", "[1" * 3000, LONG],
}
# with a box that touches, and one that is inverted
OVERLAPS = {HALF: 1, (0.1, 0.2, 0.3, 0.6): 0.5, (0.3, 0.4, 0.7, 0.8): 1 / 7, (0.5, 0.6, 0.9, 0.9): 0}
OVERLAPS[0.5, 0.6, 0.1, 0.2] = 0


def test_answers_are_read_as_the_published_scripts_read_them():
    """Boxes: OpenGVLab/InternVL, internvl_chat/eval/refcoco/evaluate_grounding.py."""
    assert {text: normalize(text) for text in NORMALIZED} == NORMALIZED
    assert {answer: chosen_letter(answer, CHOICES) for answer in LETTERS} == LETTERS
    assert {answer: says_no(answer) for answer in NO} == NO
    for box, texts in BOXES.items():
        assert [find_box(text) for text in texts] == [box and pytest.approx(box)] * len(texts)
    assert {other: overlap(HALF, other) for other in OVERLAPS} == pytest.approx(OVERLAPS)


ROTATED = [
    make_item("A", choices={"A": "cat", "B": "dog"}, group="1", category="animals"),
    make_item("C", choices={"A": "x", "B": "y", "C": "z"}, category="letters"),
    make_item("B", choices={"A": "dog", "B": "cat"}, group="1", category="animals"),
]
THREE = [make_item(answer, category="random") for answer in ("yes", "yes", "yes", "no", "no", "No")]
MIXED = [make_item("yes", category=["random", "popular"]), make_item("no", category="random")]
PIX2STRUCT = [make_item(text) for text in ("abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't")]
SAID = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]  # its metrics_test.py
FIGURES = [  # metric, items, answers, some of its figures
    ("anls", PIX2STRUCT, SAID, {"anls": 47.5}),
    ("relaxed_accuracy", PIX2STRUCT, SAID, {"relaxed_accuracy": 62.5}),
    # rotations are right together or not at all
    ("multiple_choice", ROTATED, ["A", "C", "A"],
     {"accuracy": 50, "accuracy/animals": 0, "accuracy/letters": 100, "accuracy_single": 200 / 3, "unclear": 0}),
    ("multiple_choice", ROTATED[:2], ["cat", "hm"], {"accuracy": 50, "unclear": 50, "accuracy_single": None}),
    # 2 hits, 1 missed, 2 false, 1 rejected
    ("yes_no", THREE, ["yes", "no", "Yes, it is", "no", "yes", "hm"],
     {"f1": 400 / 7, "accuracy": 50, "precision": 50, "recall": 200 / 3, "yes_ratio": 400 / 6, "unclear": 100 / 6}),
    # means over categories; what has none is a further one
    ("yes_no", MIXED, ["yes", "yes"],
     {"f1/random": 200 / 3, "f1/popular": 100, "f1": (200 / 3 + 100) / 2, "accuracy": (50 + 100) / 2}),
    ("yes_no", [THREE[0], make_item("yes"), make_item("no")], ["yes", "no", "no"], {"f1": 50}),
    # half an overlap is enough
    ("iou", [make_item("[100, 200, 500, 600]")] * 4,
     ["[[100, 200, 300, 600]]", "[[100,200,299,600]]", "[0.1,0.2,0.5,0.6]", "?"],
     {"accuracy": 50, "unclear": 25, "mean_iou": 100 * (0.5 + 0.4975 + 1) / 4}),
    # 3 edits, 10 characters
    ("cer", [make_item("a"), make_item("abcdefghi")], ["xyz", "abcdefghi"], {"cer": 30}),
    ("exact_match", [make_item("x", category=category) for category in (["a", "b"], None, "a", "")],
     ["x", "x", "y", "y"], {"accuracy": 50, "accuracy/a": 50, "accuracy/b": 100, "accuracy/": None}),
]  # fmt: skip


def test_figures():
    for name, items, answers, wanted in FIGURES:
        found = METRICS[name].figures(answers, items)
        assert {key: found.get(key) for key in wanted} == pytest.approx(wanted), (name, answers, found)


def test_what_cannot_be_measured_is_refused():
    for name, expected, facts, message in (
        ("vqa_accuracy", "abc", {}, r"3 answers; VQA accuracy .* exact_match"),
        ("multiple_choice", "A", {}, "no choices; give them"),
        ("multiple_choice", "AB", {"choices": CHOICES}, r"\['A', 'B'\] is none of the letters A, B, C; correct"),
        ("yes_no", ["yes", "no"], {}, r"\['yes', 'no'\] is neither yes nor no"),
        ("iou", ["the bus"], {}, "the answer 'the bus' is no box"),
        ("iou", ["<box>[[5, 5, 5, 9]]</box>"], {}, "is no box with an area"),
    ):
        problem, remedy = METRICS[name].problem(make_item(*expected, **facts))
        assert re.search(message, f"{problem}; {remedy}"), name
