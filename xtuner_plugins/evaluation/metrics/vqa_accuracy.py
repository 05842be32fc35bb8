"""VQA accuracy (Antol et al., 2015, arXiv:1505.00468), the metric of VQAv2, TextVQA, OK-VQA and VizWiz."""

from __future__ import annotations

import re
from functools import lru_cache

from ..items import Item
from .averages import Average, refuse

NUM_ANNOTATORS = 10
AGREEMENT = 3  # annotators who say the same make an answer right
ARTICLES = ("a", "an", "the")
NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
PUNCTUATION = """;/[]"{}()=+\\_-><@`!"""
# The contractions of the official evaluation. A word that lacks one of its apostrophes is given it back.
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
).split()
COMPLETED = {
    word[: mark.start()] + word[mark.end() :]: word for word in CONTRACTIONS for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}  # the official table has this one the other way round


class VqaAccuracy(Average):
    """An answer is right if three of the other annotators gave it, and a third for each otherwise.

    Each of the ten annotators is left out once, and the ten results are averaged. Answers are normalized as EvalAI
    does it for TextVQA, which is stricter than the script of VQAv2 in one point: always, not only where annotators
    disagree.
    """

    name = "vqa_accuracy"
    headline = "vqa_accuracy"

    def check(self, item: Item) -> None:
        super().check(item)
        if len(item.expected) != NUM_ANNOTATORS:
            raise refuse(
                item,
                "answers",
                f"{len(item.expected)} answers; VQA accuracy is defined by those of {NUM_ANNOTATORS} annotators",
                "give ten (repeat what several said), or take another metric, such as exact_match",
            )

    def score(self, answer: str, item: Item) -> float:
        given, said = normalize(answer), [normalize(text) for text in item.expected]
        agreeing = said.count(given)
        return sum(min(1.0, (agreeing - (text == given)) / AGREEMENT) for text in said) / len(said)


@lru_cache(maxsize=100_000)
def normalize(text: str) -> str:
    """Without case, punctuation and articles; numbers up to ten as digits, contractions with their apostrophe."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    text = text.translate(_punctuation(text))
    text = re.sub(r"\.(?!\d)", "", text)
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(COMPLETED.get(word, word) for word in words if word not in ARTICLES)


def _punctuation(text: str) -> dict[int, str]:
    """What becomes of each mark: nothing if it stands beside a space somewhere in the text, otherwise a space."""
    return {ord(mark): "" if f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
