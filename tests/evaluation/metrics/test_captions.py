"""BLEU, ROUGE and CIDEr against published values.

BLEU: the classical example of Papineni et al. (2002), section 2.1: of "the the the the the the the" 2 of 7 words count.
ROUGE: Lin (2004), section 3.1: "police kill the gunman" against "police killed the gunman" has ROUGE-L 0.75.
CIDEr: the test of Pix2Struct's metrics (google-research/pix2struct, pix2struct/metrics_test.py), 128.6.
"""

import pytest

from xtuner_plugins.evaluation.metrics.captions import Bleu, Cider, Rouge


def test_bleu_clips_counts(make_item):
    item = make_item("The cat is on the mat.", "There is a cat on the mat.")
    row = Bleu().tally(["the the the the the the the"], [item])[0]
    assert (row[0], row[4]) == (1, 7)  # 13a keeps case: "the" once in the reference with the most


def test_bleu_of_a_set_equals_the_library(make_item):
    from sacrebleu.metrics import BLEU

    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
        ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
    ]  # the example of sacreBLEU's README, whose BLEU is 48.53
    items = [make_item(*texts) for texts in zip(*references, strict=True)]
    bleu = Bleu().figures(answers, items)["bleu"]
    assert bleu == pytest.approx(BLEU().corpus_score(answers, references).score) == pytest.approx(48.53, abs=0.005)


def test_chinese_is_cut_into_characters(make_item):
    item = make_item("一只狗在草地上奔跑")
    assert Bleu().score("一只狗在草地上睡觉", item) > 0.6
    assert Rouge().score("一只狗在草地上睡觉", item) == pytest.approx(7 / 9)
    items = [item, make_item("两辆车停在路边")]
    assert Cider().scores(["一只狗在草地上奔跑", "一只猫"], items)[0] == pytest.approx(10)


def test_rouge(make_item):
    item = make_item("police killed the gunman")
    assert Rouge().score("police kill the gunman", item) == pytest.approx(0.75)
    assert Rouge().score("the gunman kill police", item) == pytest.approx(0.5)
    figures = Rouge().figures(["Police, kill the gunman!"], [item])
    assert figures == pytest.approx({"rougeL": 75, "rouge1": 75, "rouge2": 100 / 3})


def test_cider(make_item):
    answers = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
    items = [make_item(text) for text in ("abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't")]
    assert Cider().figures(answers, items)["cider"] == pytest.approx(128.6, abs=0.05)


def test_cider_counts_no_punctuation(make_item):
    items = [make_item('A dog, "Rex" (left); it sleeps.'), make_item("Two cars drive along.")]
    assert Cider().scores(["a dog `` rex left it sleeps", "two cars drive along"], items) == pytest.approx([10, 10])


def test_a_lone_answer_has_no_cider(make_item):
    assert Cider().score("a dog", make_item("a dog")) == 0
