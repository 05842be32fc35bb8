"""Questions about the toy images: each kind is asked, and the image is needed to answer."""

import collections
import hashlib
import random

from transformers import AutoTokenizer

from xtuner_plugins.toy.data import scene_of
from xtuner_plugins.toy.images import Scene, Shape, Sign
from xtuner_plugins.toy.language import ACROSS, KINDS, ask, corpus, describe
from xtuner_plugins.toy.tokenizer import build_tokenizer

SIGN = Sign("blue", "47", 0, 0, "DejaVuSans-Bold")
SHAPES = (Shape("star", "red", 60, 60, 40), Shape("circle", "green", 160, 160, 40))
SCENE = Scene(224, 224, (SIGN,), SHAPES, 1)


def test_answers_about_a_scene():
    answers = {question.text: question.answer for question in ask(SCENE, random.Random(0))}
    assert answers.pop("Is there a circle?", "yes") == "yes" and answers.pop("Is there a square?", "no") == "no"
    assert {key: answers[key] for key in answers if not key.startswith("Is there")} == {
        "What number is on the sign?": "47",
        "What colour is the star?": "red",
        "What colour is the circle?": "green",
        "How many shapes are there?": "two",
    }


def test_the_caption_names_shapes_in_the_order_of_the_language():
    assert describe(SCENE) == "a green circle, a red star, a sign with 47"


def test_the_corpus_is_always_the_same():
    """Tokenizer and results depend on it: a changed word changes both."""
    digest = hashlib.sha256("\n".join(corpus()).encode()).hexdigest()
    assert digest.startswith("fe29588bc3527ac8")


def test_no_answer_follows_from_the_words_of_the_question():
    """The best that one can do without the image: always the commonest answer to this very question."""
    answers = collections.defaultdict(collections.Counter)
    for index in range(3000):
        scene, rng = scene_of("train", index)
        for question in ask(scene, rng):
            answers[question.kind, question.text][question.answer] += 1
    for kind in KINDS:
        counters = [counter for (asked, _), counter in answers.items() if asked == kind]
        blind = sum(counter.most_common(1)[0][1] for counter in counters) / sum(c.total() for c in counters)
        # 90 numbers, 6 colors, 3 counts, 2 ways of presence, with room for chance (and for how many kinds fit).
        assert blind < {"number": 0.03, ACROSS: 0.05, "colour": 0.25, "count": 0.5, "presence": 0.65}[kind], (
            kind,
            blind,
        )


def test_words_of_the_toy_language_are_single_tokens(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(build_tokenizer(tmp_path))
    for word in (" .", " redcircle", " purplestar", " number", " sign"):
        assert len(tokenizer.tokenize(word)) == 1, word


def test_every_held_out_image_is_asked_every_kind():
    for index in range(50):
        scene, _ = scene_of("test", index)
        assert {question.kind for question in ask(scene, random.Random(1))} == set(KINDS) - {ACROSS}
