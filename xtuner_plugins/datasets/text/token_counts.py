"""Counts the tokens of many texts, faster than the tokenizer where the counts are known to be equal.

Two ways:

    words       Texts repeat few words. Where a pre-tokenizer always splits before a single space, "a red bus" has the
                tokens of "a", " red" and " bus", and each word is counted once. `SPACED` holds the patterns that do
                so: in each, a match has a space only at its beginning, or is white space altogether.
    tiktoken    Runs a byte-level BPE (Qwen, GPT-2, Llama 3...) four times as fast. It merges by the rank of the
                result, the tokenizer by the rank of the pair; for nearly every vocabulary that is the same.

Since equality isn't guaranteed, every call compares some of its texts with the tokenizer, and one difference turns the
fast ways off. `benchmarks/fuzz_counts.py` compares hundreds of thousands of texts in many scripts.
"""

import json
import math
import re
from collections.abc import Callable

from .tokens import TextTokenizer, no_garbage_collection

COMPARED = 64  # texts of a call that are tokenized both ways
MOST_WORDS = 1 << 19  # words in memory (50 MB) before it is cleared
LONGEST_WORD = 48
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPACED = {
    (GPT2,),  # GPT-2, Claude 2
    (CL100K,),  # Llama 3
    (CL100K.replace("{1,3}", ""),),  # Qwen 1 to 3
    (  # DeepSeek V2 and V3; matches of the first two hold no space
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + "\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[" + "\r\n" + r"]*|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+",
    ),
}
# Characters that a normalizer may change: NFC none in these ranges, the other forms none in ASCII.
NOTHING, ODD_FOR_NFC = re.compile("(?!)"), re.compile("[^\0-\u02ff\u3001-\u3029\u4e00-\u9fa5\uff01-\uff5e]")
NOT_ASCII = re.compile("[^\0-\x7f]")


class TokenCounter:
    """Counts the ids that `tokenizer.encode` would return.

    Attributes:
        fast: the tiktoken encoding, or None when tiktoken can't run this tokenizer.
        by_words: whether texts may be counted word by word.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        with no_garbage_collection():
            state = json.loads(tokenizer.plain_state())
            patterns, self._odd = _patterns(state), _odd_characters(state.get("normalizer"))
            self.fast = None if self._odd is None else _tiktoken_encoding(state, patterns)
        self.by_words = self._odd is not None and patterns in SPACED
        self._first, self._inner = _Words(self._count_one, ""), _Words(self._count_one, " ")

    def count(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text."""
        if len(texts) > COMPARED and (self.by_words or self.fast is not None):
            counts = self.count_fast(texts)
            places = range(0, len(texts), -(-len(texts) // COMPARED))
            exact = self.tokenizer.encode_batch([texts[place] for place in places])
            if all(counts[place] == len(own) for place, own in zip(places, exact, strict=True)):
                return counts
            self.fast, self.by_words = None, False
        return [len(ids) for ids in self.tokenizer.encode_batch(texts)]

    def count_fast(self, texts: list[str]) -> list[int]:
        """As `count`, without a comparison."""
        if not self.by_words:
            return [self._count_one(text) for text in texts]
        counts, first, inner = [], self._first, self._inner.__getitem__
        for text in texts:
            if text.isascii():
                head, space, rest = text.partition(" ")
                number = first[head] + sum(map(inner, rest.split(" "))) if space else first[head]
                counts.append(number if number == number else self._count_one(text))
            else:
                counts.append(self._count_one(text))
        return counts

    def _count_one(self, text: str) -> int:
        if self.fast is None:
            return len(self.tokenizer.encode(text))
        if not text.isascii() and self._odd.search(text):
            text = self.tokenizer.normalize(text)
        return len(self.fast.encode_ordinary(text))


class _Words(dict):
    """word -> number of tokens after `before`; NaN for a word that is empty or has white space at an end."""

    def __init__(self, count: Callable[[str], int], before: str):
        super().__init__()
        self.count, self.before = count, before

    def __missing__(self, word: str) -> int | float:
        alone = word and not word[0].isspace() and not word[-1].isspace()
        number = self.count(self.before + word) if alone else math.nan
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = number
        return number


def _odd_characters(normalizer: dict | None) -> re.Pattern | None:
    """A pattern of the characters that the normalizer may change; None where it may change ASCII."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kinds = {step.get("type") for step in steps}
    if kinds - {"NFC", "NFD", "NFKC", "NFKD"}:
        return None
    return NOTHING if not kinds else ODD_FOR_NFC if kinds == {"NFC"} else NOT_ASCII


def _patterns(state: dict) -> tuple[str, ...] | None:
    """The regular expressions that split a text before a byte-level model; None for any other splitting."""
    splitter = state.get("pre_tokenizer") or {}
    *splits, byte_level = splitter.get("pretokenizers", [splitter])
    if byte_level.get("type") != "ByteLevel" or byte_level.get("add_prefix_space"):
        return None
    patterns = []
    for step in splits:
        pattern = step.get("pattern", {}).get("Regex") if step.get("type") == "Split" else None
        if pattern is None or step.get("behavior") != "Isolated" or step.get("invert"):
            return None
        patterns.append(pattern)
    return (*patterns, GPT2) if byte_level.get("use_regex") else tuple(patterns)


def _tiktoken_encoding(state: dict, patterns: tuple[str, ...] | None):
    """The tiktoken encoding of a tokenizer's state, or None unless it is a plain byte-level BPE with one pattern."""
    model = state["model"]
    if (
        patterns is None
        or len(patterns) != 1
        or model["type"] != "BPE"
        or model.get("dropout")
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return None
    try:
        import tiktoken

        alphabet = _byte_alphabet()
        ranks = {}
        for token, rank in model["vocab"].items():
            with_bytes = [alphabet.get(char) for char in token]
            if None not in with_bytes:  # a control token in the vocabulary is never merged
                ranks[bytes(with_bytes)] = rank
        return tiktoken.Encoding("plain", pat_str=patterns[0], mergeable_ranks=ranks, special_tokens={})
    except Exception:  # tiktoken refuses the vocabulary or pattern: the tokenizer counts
        return None


def _byte_alphabet() -> dict[str, int]:
    """The character of each byte in byte-level BPE: printable ones as they are, the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
