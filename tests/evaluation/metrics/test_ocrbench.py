"""The rule of OCRBench's own script (Yuliang-Liu/MultimodalOCR), repeated in VLMEvalKit,
vlmeval/dataset/image_vqa.py."""

import pytest

from xtuner_plugins.evaluation.metrics.ocrbench import FORMULAS, OcrBench


@pytest.mark.parametrize(
    "answer, right",
    [
        ("CENTRE", True),
        ("the word is Centre.", True),
        ("new\nyork", True),
        ("cent re", False),
        ("", False),
    ],
)
def test_a_right_text_is_contained(answer, right, make_item):
    assert OcrBench().score(answer, make_item("Centre", "New York", category="Regular Text Recognition")) is right


def test_formulas_ignore_space_and_mind_case(make_item):
    item = make_item(r"\frac { A } { b }", category=FORMULAS)
    assert OcrBench().score(r"$ \frac{A}{ b }$", item)
    assert not OcrBench().score(r"\frac{a}{b}", item)


def test_the_score_is_out_of_a_thousand(make_item):
    items = [make_item("a", category=kind) for kind in ("Doc-oriented VQA", "Doc-oriented VQA", FORMULAS, FORMULAS)]
    figures = OcrBench().figures(["a", "b", "a", "a"], items)
    assert figures == {"score": 750, "score/Doc-oriented VQA": 500, f"score/{FORMULAS}": 1000}
