"""BLEU, ROUGE and CIDEr: words in common with the right texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from ..items import Item
from .averages import Average

# Scripts without spaces between words: each character is taken for a word.
_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAS_CHARACTERS = re.compile(f"[{_CHARACTER}]")
_WORD = re.compile(rf"[{_CHARACTER}]|[^\W_{_CHARACTER}]+")
# What the tokenizer of the COCO captions leaves out.
_COCO_LEAVES_OUT = frozenset("'' ' `` ` -lrb- -rrb- -lcb- -rcb- ( ) { } . ? ! , : - -- ... ;".split())
_BLEU_ORDER = 4


class Bleu(Average):
    """BLEU-4 of the whole set by sacreBLEU (Papineni et al., 2002; Post, 2018).

    Texts are cut into words as in mteval-v13a; where a right text has Chinese characters, each of them is a word. The
    score of one answer is its sentence BLEU divided by 100.
    """

    name = headline = "bleu"

    def score(self, answer: str, item: Item) -> float:
        return self._measure(answer, item).score / 100

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Rows of matching n-grams (1 to 4), n-grams, words of the answer, words of the nearest right text."""
        found = [self._measure(answer, item) for answer, item in zip(answers, items, strict=True)]
        return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], dtype=float)

    def headline_of(self, sums: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(_bleu_of, -1, sums)

    @staticmethod
    def _measure(answer: str, item: Item):
        expected = [text for text in item.expected if text.strip()]
        return _bleu(any(map(_HAS_CHARACTERS.search, expected))).sentence_score(answer, expected)


@cache
def _bleu(has_characters: bool):
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh" if has_characters else "13a", max_ngram_order=_BLEU_ORDER, effective_order=True)


def _bleu_of(sums: np.ndarray) -> float:
    from sacrebleu.metrics import BLEU

    counts, totals, lengths = np.split(sums.astype(int), (_BLEU_ORDER, 2 * _BLEU_ORDER))
    return BLEU.compute_bleu(counts.tolist(), totals.tolist(), *lengths.tolist(), max_ngram_order=_BLEU_ORDER).score


class Rouge(Average):
    """ROUGE (Lin, 2004) by rouge-score: F1 of words, pairs of words and the longest common subsequence (the headline).

    Of several right texts the nearest counts. Words are runs of letters and digits without case, and single
    characters of Chinese and Japanese; nothing is stemmed.
    """

    name = "rouge"
    headline = "rougeL"

    def score(self, answer: str, item: Item) -> float:
        return self._measure(answer, item)[self.headline].fmeasure

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        found = [self._measure(answer, item) for answer, item in zip(answers, items, strict=True)]
        others = [name for name in _ROUGE_KINDS if name != self.headline]
        means = {name: 100 * float(np.mean([one[name].fmeasure for one in found])) for name in others}
        return dict(super().figures(answers, items)) | means

    @staticmethod
    def _measure(answer: str, item: Item) -> Mapping:
        return _rouge().score_multi([text for text in item.expected if text.strip()], answer)


_ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(_ROUGE_KINDS, tokenizer=_Words())


class _Words:
    """The tokenizer's interface that rouge-score asks for."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return _WORD.findall(text.lower())


class Cider(Average):
    """CIDEr-D by pycocoevalcap (Vedantam et al., 2015, arXiv:1411.5726), times 100 as usual.

    Words weigh by how rare they are in the right texts of the whole set: the score of an answer (0 to 10) depends on
    the set it is scored in, and is 0 in a set of one. COCO's evaluation cuts words with Stanford's tokenizer, which
    needs Java; NLTK's follows the same rules (Penn Treebank), and may differ in rare cases.
    """

    name = headline = "cider"

    def scores(self, answers: Sequence[str], items: Sequence[Item]) -> list[float]:
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        scorer = CiderScorer(n=4, sigma=6.0)
        for answer, item in zip(answers, items, strict=True):
            scorer += (_coco_words(answer), [_coco_words(text) for text in item.expected if text.strip()])
        return scorer.compute_score()[1].tolist()

    def score(self, answer: str, item: Item) -> float:
        return self.scores([answer], [item])[0]


@cache
def _treebank():
    from nltk.tokenize.treebank import TreebankWordTokenizer

    return TreebankWordTokenizer()


def _coco_words(text: str) -> str:
    """Words as the evaluation of COCO captions cuts them, joined by spaces."""
    apart = _HAS_CHARACTERS.sub(lambda found: f" {found[0]} ", text.lower())
    return " ".join(word for word in _treebank().tokenize(apart) if word not in _COCO_LEAVES_OUT)
