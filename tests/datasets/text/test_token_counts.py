"""The fast counts equal the tokenizer's own, and are given up when they don't."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from xtuner_plugins.datasets.text import token_counts
from xtuner_plugins.datasets.text.token_counts import CL100K, SPACED, TokenCounter

WORDS = [
    "It's",
    "1234.",
    "e\u0301a",
    "的图片",
    "x",
    "<|im_end|>",
    "\u0301",
    "what",
    "color",
    "don't",
    "",
    "\u212b",
    "[1, 2]",
]
GLUE = [" ", " ", "  ", "\n", " \n", "\r\n", "\n ", "\t", "\u3000", "\x1c", "\u00a0", ""]
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GLUE)), max_size=9).map(
        lambda parts: "".join(word + glue for word, glue in parts)
    ),
    min_size=1,
    max_size=40,
)
(DEEPSEEK,) = [patterns for patterns in SPACED if len(patterns) > 1]


class Own:
    """A tokenizer as `TokenCounter` asks for one, with this pre-tokenizer and normalizer and the toy's merges."""

    def __init__(self, text_tokenizer, pre_tokenizer=None, normalizer=None):
        self.plain = Tokenizer.from_str(text_tokenizer.plain_state())
        self.plain.normalizer = normalizer
        if pre_tokenizer is not None:
            self.plain.pre_tokenizer = pre_tokenizer

    def plain_state(self):
        return self.plain.to_str()

    def normalize(self, text):
        return self.plain.normalizer.normalize_str(text)

    def encode(self, text):
        return self.plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def splitter(patterns):
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CASES = {
    "toy": (None, normalizers.NFC()),
    "gpt2": (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), normalizers.NFKC()),
    "llama3": (splitter([CL100K]), None),
    "deepseek": (splitter(DEEPSEEK), normalizers.Sequence([])),
    "nfd": (splitter([CL100K.replace("{1,3}", "")]), normalizers.NFD()),
}


@pytest.fixture(scope="module")
def counters(text_tokenizer):
    found = {name: TokenCounter(Own(text_tokenizer, *parts)) for name, parts in CASES.items()}
    return found | {"its own": TokenCounter(text_tokenizer)}


@pytest.mark.parametrize("case", [*CASES, "its own"])
def test_counts_equal_the_tokenizers(counters, case):
    counter = counters[case]
    assert counter.by_words and (counter.fast is not None) == (case != "deepseek")

    @settings(max_examples=40, deadline=None)
    @given(texts=TEXTS)
    def check(texts):
        right = [len(counter.tokenizer.encode(text)) for text in texts]
        assert counter.count_fast(texts) == right
        assert [counter._count_one(text) for text in texts] == right

    check()


def test_words_are_forgotten_when_they_are_too_many(text_tokenizer, monkeypatch):
    monkeypatch.setattr(token_counts, "MOST_WORDS", 5)
    monkeypatch.setattr(token_counts, "LONGEST_WORD", 8)
    counter = TokenCounter(text_tokenizer)
    texts = [f"what is number {number} and a-very-long-word-{number} ?" for number in range(30)]
    assert counter.count_fast(texts) == [len(text_tokenizer.encode(text)) for text in texts]
    assert len(counter._inner) <= 5 and max(map(len, counter._inner)) <= 8


@pytest.mark.parametrize("broken", ["_first", "fast"])
def test_one_difference_turns_the_fast_ways_off(text_tokenizer, broken):
    counter = TokenCounter(text_tokenizer)
    texts = [f"{'是' if broken == 'fast' else ''}what is number {number}" for number in range(200)]
    right = [len(text_tokenizer.encode(text)) for text in texts]
    assert counter.count(texts) == right and counter.fast is not None and counter.by_words

    class Wrong:
        encode_ordinary = staticmethod(lambda text: [0] * 99)

    if broken == "fast":
        counter.fast = Wrong()
    else:
        counter._first = dict.fromkeys(counter._first, 99)
    assert counter.count(texts) == right and counter.fast is None and not counter.by_words


def test_other_tokenizers_are_left_alone(text_tokenizer):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    others = [(pre_tokenizers.Whitespace(), None), (byte_level, None), (None, normalizers.Lowercase())]
    others += [(None, normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]))]
    for parts in others:
        counter = TokenCounter(Own(text_tokenizer, *parts))
        assert counter.fast is None and not counter.by_words
        texts = ["  What is it ? " * number for number in range(80)]
        assert counter.count(texts) == [len(counter.tokenizer.encode(text)) for text in texts]
    # A pattern that nothing is known of: tiktoken may run it, words may not be taken apart.
    counter = TokenCounter(Own(text_tokenizer, splitter([r"\w+ \w+|\s|[^\s]+"])))
    assert not counter.by_words and counter.fast is not None
    assert counter.count_fast(["a b c d"]) == [len(counter.tokenizer.encode("a b c d"))]
    unknown = {"model": {"type": "Unigram"}, "normalizer": None, "pre_tokenizer": None}
    assert token_counts._tiktoken_encoding(unknown, token_counts._patterns(unknown)) is None


def test_the_toy_tokenizer_is_cut_as_qwen_is(text_tokenizer):
    assert token_counts._patterns(json.loads(text_tokenizer.plain_state())) == (CL100K.replace("{1,3}", ""),)
