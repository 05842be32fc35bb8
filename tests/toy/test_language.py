"""Questions about the toy images: each kind is asked, and the image is needed to answer."""

import hashlib

from transformers import AutoTokenizer

from xtuner_plugins.toy.images import Scene, Shape, Sign
from xtuner_plugins.toy.language import corpus, describe
from xtuner_plugins.toy.tokenizer import build_tokenizer

SIGN = Sign("blue", "47", 0, 0, "DejaVuSans-Bold")
SHAPES = (Shape("star", "red", 60, 60, 40), Shape("circle", "green", 160, 160, 40))
SCENE = Scene(224, 224, (SIGN,), SHAPES, 1)


def test_the_caption_names_shapes_in_the_order_of_the_language():
    assert describe(SCENE) == "a green circle, a red star, a sign with 47"


def test_the_corpus_is_always_the_same():
    """Tokenizer and results depend on it: a changed word changes both."""
    digest = hashlib.sha256("\n".join(corpus()).encode()).hexdigest()
    assert digest.startswith("fe29588bc3527ac8")


def test_words_of_the_toy_language_are_single_tokens(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(build_tokenizer(tmp_path))
    for word in (" .", " redcircle", " purplestar", " number", " sign"):
        assert len(tokenizer.tokenize(word)) == 1, word
