"""Each metric on published examples, and what all of them must do."""

import numpy as np
import pytest

from xtuner_plugins.errors import RecordError, SettingError
from xtuner_plugins.evaluation.metrics import (
    METRICS,
    by_category,
    by_group,
    chosen_letter,
    find_box,
    find_metric,
    normalize,
    overlap,
    says_no,
    share,
)

# Metric: right answers and facts of an item that it can measure.
FITTING = {
    "vqa_accuracy": (["red"] * 10, {}),
    "multiple_choice": (["A"], {"choices": {"A": "red", "B": "blue"}}),
    "yes_no": (["yes"], {}),
    "iou": (["<box>[[0, 0, 500, 500]]</box>"], {}),
}
HOSTILE = ["", " ", "\n", "é中文🙂", "a" * 5000, "[" * 300, "(1," * 200, "nan", "inf%", "-", "\0", "[[1e999, 0, 1, 1]]"]
CHOICES = {"A": "apple", "B": "a red bus", "C": "corn"}


def fitting(name, make_item, **more):
    expected, facts = FITTING.get(name, (["a red sign"], {}))
    return make_item(*expected, **facts | more)


def test_what_every_metric_does(make_item):
    """Any answer has a finite score and figures; right ones are as good as can be; the headline is of added rows."""
    for name, metric in METRICS.items():
        items = [fitting(name, make_item, category="abc"[n % 3]) for n in range(len(HOSTILE))]
        for answer, item in zip(HOSTILE, items, strict=True):
            metric.check(item)
            assert 0 <= metric.score(answer, item) <= 1, (name, answer)
        for answers in (HOSTILE, [item.expected[0] for item in items]):
            figures, rows = metric.figures(answers, items), metric.tally(answers, items)
            assert all(type(value) is float and np.isfinite(value) for value in figures.values()), name
            assert rows.dtype == float and rows.shape[0] == len(items) and rows.shape[2] == 2
            assert share(rows.sum(axis=0)) == pytest.approx(figures[metric.headline])
            assert f"{metric.headline}/c" in figures
        assert figures[metric.headline] == (100.0 if metric.higher_is_better else 0.0), name
        for item in (make_item(place="own.jsonl:7"), make_item("", place="own.jsonl:7")):
            with pytest.raises(RecordError, match=r"^own\.jsonl:7 \(q\d+\): .*;"):
                metric.check(item)


SCORES = [
    # case and space are all that is ignored
    *(("exact_match", ["yes", "été"], answer, right) for answer, right in
      ((" YES\n", 1), ("yes.", 0), ("the yes", 0), ("", 0), ("ÉTÉ", 1))),
    # whole words and numbers of the first line
    *(("mentions", ["12", "Twelve"], answer, right) for answer, right in
      ((" 7 + 5 = 12.", 1), ("It is TWELVE!", 1), ("12, of course", 1), ("答案是12。", 1), ("no\n12", 0), ("112", 0),
       ("12.5", 0), ("1.12", 0), ("12th", 0), ("twelvefold", 0), ("", 0))),
    ("mentions", ["星期四", "周四"], "是星期四。", 1),
    ("mentions", ["C++"], "c++", 1),
    ("anls", ["ITC Limited"], "itc  Limited\n", 1),
    ("anls", ["$2000"], "$2,000", 1 - 1 / 6),
    ("anls", ["sitting"], "kitten", 1 - 3 / 7),
    ("anls", ["ax"], "ab", 0.5),  # exactly the threshold counts
    ("anls", ["xyc"], "abc", 0),
    ("anls", ["the year", "2022"], "2022", 1),
    *(("relaxed_accuracy", ["other", expected], answer, right) for answer, expected, right in
      (("105", "100", 1), ("105.1", "100", 0), ("-95", "-100", 1), ("14%", "14", 0), ("0.14", "14%", 1), ("0", "0", 1),
       ("0.0", "0", 0), ("1,000", "1000", 0), ("nan", "nan", 1), ("inf", "5", 0), ("YES ", "yes", 1), ("%", "5", 0))),
    # the tests of AXLearn's VQA metric (apple/axlearn, axlearn/vision/metrics_vqa_test.py)
    ("vqa_accuracy", "down down table/stake down table down down down down board".split(), "down", 1),
    ("vqa_accuracy", "3 3 3 1 3 3 3 1 1 1".split(), "1", 1),
    ("vqa_accuracy", ["about 100", "100", "0", "0", "thousands", "1", "0", "100", "many", "unknown"], "100", 0.6),
    ("vqa_accuracy", "50 lots 60 several 55 many 78 36 2000 50".split(), "lots", 0.3),
    ("vqa_accuracy", ["toilet paper"] * 3 + ["nothing"] * 4 + ["paper", "handle", "valve"], "toilet paper", 0.9),
    ("cer", ["kitten"], "sitting", 1 - 3 / 6),
    ("cer", ["ab"], "much too long", 0),
    ("cer", ["招牌上"], " 招牌\n", 2 / 3),
    ("cer", ["zzz", "abc"], "abd", 2 / 3),  # the nearest
]  # fmt: skip


def test_scores(make_item):
    wrong = []
    for name, expected, answer, score in SCORES:
        METRICS[name].check(item := make_item(*expected))
        if (found := METRICS[name].score(answer, item)) != pytest.approx(score):
            wrong.append((name, expected, answer, score, found))
    assert wrong == []


def test_the_example_of_pix2struct(make_item):
    """google-research/pix2struct, pix2struct/metrics_test.py."""
    answers = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
    items = [make_item(text) for text in ("abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't")]
    for name, headline in (("anls", 47.5), ("relaxed_accuracy", 62.5)):
        assert METRICS[name].figures(answers, items) == pytest.approx({name: headline})


NORMALIZED = {
    # AXLearn's
    "n/a": "n", "no one": "no 1", "02/12/2011": "02 12 2011", "333-3333": "333 3333", "20+": "20",
    "6 fifty-five": "6 fifty 5", "8 - 2": "8 2", "none": "0", "a": "", "horse, man": "horse man",
    "june 29, 2013": "june 29 2013", "streamers_and_fake_records": "streamers and fake records",
    "hammer time!": "hammer time", "???": "", "don't shoot": "don't shoot",
    # the official table and rules
    "Dont  Stop": "don't stop", "couldntve": "couldntve", "couldn'tve": "couldn't've",
    "somebody'd": "somebodyd", "The man's hat.": "man 's hat", "3.5 cm.": "3.5 cm", "100,978": "100978",
    "2:50 pm": "2:50 pm", "t-shirt - red": "tshirt red", "back\\slash": "back slash", "a\tb\nc": "b c",
}  # fmt: skip
LETTERS = {  # open-compass/VLMEvalKit, vlmeval/utils/matching_util.py
    "B": "B",
    "b": None,  # a small letter is a word
    "(C)": "C",
    "**C**": "C",
    "The answer is B. a red bus": "B",  # among the last four words of the cleaned text
    "A man in front of the house": None,  # "A" too far from the end, and no text of a choice
    "It shows corn": "C",
    "apple or corn": None,
    "A or B": None,
    "Z apple": None,
    "中文": None,
    "I think that it is a very long explanation of why the corn is the right one here": None,  # too long
}
# `evaluate.py` of AoiDragon/POPE, repeated in OpenGVLab/InternVL, internvl_chat/eval/pope/eval_pope.py
NO = {"No": 1, "no, it is green": 1, "There is not a dog.": 1, "Yes. There is no doubt": 0, "NO": 0, "": 0}


def test_answers_are_read_as_the_published_scripts_read_them():
    assert {text: normalize(text) for text in NORMALIZED} == NORMALIZED
    assert {answer: chosen_letter(answer, CHOICES) for answer in LETTERS} == LETTERS
    assert {answer: says_no(answer) for answer in NO} == NO


def test_rotations_count_together(make_item):
    items = [
        make_item("A", choices={"A": "cat", "B": "dog"}, group="1", category="animals"),
        make_item("C", choices={"A": "x", "B": "y", "C": "z"}, category="letters"),
        make_item("B", choices={"A": "dog", "B": "cat"}, group="1", category="animals"),
    ]
    metric = METRICS["multiple_choice"]
    assert metric.figures(["A", "C", "A"], items) == pytest.approx(
        {"accuracy": 50, "accuracy/animals": 0, "accuracy/letters": 100, "accuracy_single": 200 / 3, "unclear": 0}
    )
    assert metric.figures(["cat", "hm", "B"], items)["accuracy/animals"] == 100
    assert metric.figures(["cat", "hm"], items[:2]) == pytest.approx(
        {"accuracy": 50, "accuracy/animals": 100, "accuracy/letters": 0, "unclear": 50}
    )


def test_figures_of_yes_and_no(make_item):
    metric, items = METRICS["yes_no"], [make_item(text) for text in ("yes", "yes", "yes", "no", "no", "No")]
    # 2 hits, 1 missed, 2 false, 1 rejected
    assert metric.figures(["yes", "no", "Yes, it is", "no", "yes", "hm"], items) == pytest.approx(
        {"f1": 400 / 7, "accuracy": 50, "precision": 50, "recall": 200 / 3, "yes_ratio": 400 / 6, "unclear": 100 / 6}
    )
    items = [make_item("yes", category=["random", "popular"]), make_item("no", category="random")]
    figures = metric.figures(["yes", "yes"], items)
    assert (figures["f1/random"], figures["f1/popular"]) == pytest.approx((200 / 3, 100))
    assert (figures["f1"], figures["accuracy"]) == pytest.approx(((200 / 3 + 100) / 2, 75))  # means over categories
    assert metric.figures(["no"], [make_item("yes")])["f1"] == 0
    items = [make_item("yes", category="random"), make_item("yes"), make_item("no")]  # without one: a further category
    assert metric.figures(["yes", "no", "no"], items)["f1"] == 50


def test_the_rate_of_a_set_weighs_by_length(make_item):
    items = [make_item("a"), make_item("abcdefghi")]
    assert METRICS["cer"].figures(["xyz", "abcdefghi"], items) == {"cer": pytest.approx(30.0)}  # 3 edits, 10 characters


HALF = (0.1, 0.2, 0.5, 0.6)
LONG = "[" + ", ".join(["1" * 300] * 4) + " x"  # what a model in a loop may write


BOXES = [
    ("<ref>the bus</ref><box>[[100, 200, 500, 600]]</box>", HALF),
    ("[[100, 200, 500, 600]] or [[0, 0, 1, 1]]", HALF),  # decoding drops the tags; the first counts
    ("<box>(100,200),(500,600)</box>", HALF),
    ("(100,200),(500,600)", HALF),
    ("[0.1, .2, 0.5, 0.6]", HALF),
    ("<box>[[0, 0, 1, 1]]</box>", (0, 0, 0.001, 0.001)),
    ("[1, 1, 1, 1]", (0.001,) * 4),
    *((text, None) for text in ("no box", "[1, 2, 3]", "[1, 2, 3, 4", "[a, b, c, d]", "[1" * 3000, LONG)),
]
OVERLAPS = [
    (HALF, 1.0),
    ((0.1, 0.2, 0.3, 0.6), 0.5),
    ((0.3, 0.4, 0.7, 0.8), 1 / 7),  # a quarter of each: 1 / (4 + 4 - 1)
    ((0.5, 0.6, 0.9, 0.9), 0.0),  # touches
    ((0.5, 0.6, 0.1, 0.2), 0.0),  # inverted
]


def test_boxes_as_internvl_reads_them(make_item):
    """OpenGVLab/InternVL, internvl_chat/eval/refcoco/evaluate_grounding.py."""
    for text, box in BOXES:
        assert find_box(text) == (box and pytest.approx(box)), text
    for other, iou in OVERLAPS:
        assert overlap(HALF, other) == pytest.approx(iou), other
    items = [make_item("[100, 200, 500, 600]") for _ in range(4)]
    answers = ["[[100, 200, 300, 600]]", "[[100,200,299,600]]", "[0.1,0.2,0.5,0.6]", "?"]  # half an overlap is enough
    figures = METRICS["iou"].figures(answers, items)
    assert figures == pytest.approx({"accuracy": 50, "unclear": 25, "mean_iou": 100 * (0.5 + 0.4975 + 1) / 4})


def test_refused(make_item):
    for name, expected, facts, message in (
        ("vqa_accuracy", "abc", {}, r"own.jsonl:1 \(q1\): 3 answers; VQA accuracy .* exact_match"),
        ("multiple_choice", "A", {}, "no choices; give them"),
        ("multiple_choice", "D", {"choices": CHOICES}, r"the answer \['D'\] is none of the letters A, B, C; correct"),
        ("multiple_choice", "AB", {"choices": CHOICES}, "none of the letters"),
        ("yes_no", ["maybe"], {}, r"\['maybe'\] is neither yes nor no"),
        ("iou", ["the bus"], {}, "the answer 'the bus' is no box"),
        ("iou", ["<box>[[5, 5, 5, 9]]</box>"], {}, "is no box with an area"),
    ):
        with pytest.raises(RecordError, match=message):
            METRICS[name].check(make_item(*expected, **facts))
    with pytest.raises(SettingError, match="'VQA-acuracy' is unknown; the metrics are exact_match, "):
        find_metric("VQA-acuracy")


def test_groups_and_categories(make_item):
    items = [make_item("x"), make_item("x", group="g"), make_item("x"), make_item("x", group="g")]
    assert by_group(items) == [[0], [1, 3], [2]]
    items = [make_item("x", category=category) for category in (["a", "b"], None, "a", "")]
    assert by_category(items) == {"a": [0, 2], "b": [0]}
    figures = METRICS["exact_match"].figures(["x", "x", "y", "y"], items)
    assert figures == {"accuracy": 50.0, "accuracy/a": 50.0, "accuracy/b": 100.0}
