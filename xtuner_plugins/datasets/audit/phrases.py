"""Phrases that many answers share: sequences of words, counted over a random part of the answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .check import FileReport
from .facts import joined
from .looking import Checked
from .texts import words_of

PHRASE = 5  # words
MOST_ANSWERS = 10_000  # that are read; random ones where there are more
MOST_WORDS = 400  # of an answer that are read
MOST_PHRASES = 12  # that are named
CANDIDATES = 400  # sequences from which phrases are joined
SHARE, FEWEST = 0.01, 3  # of the answers that were read, and number: fewer aren't named
ALIKE = 0.9  # counts of two sequences that belong to one phrase


@dataclass
class Phrase:
    """Words that follow each other in `count` answers, and the answer where they were met first."""

    words: list[str]
    count: int
    place: tuple[int, int]  # file, record

    @property
    def text(self) -> str:
        """The words; without spaces between Chinese characters."""
        return (" " if all(word.isascii() for word in self.words) else "").join(self.words)


def frequent_phrases(dataset: Checked, reports: Sequence[FileReport], seed: int = 0) -> tuple[list[Phrase], int]:
    """The most frequent phrases across answers, and the number of answers that were read.

    An answer counts once for each phrase. Sequences that overlap in nearly as many answers become one phrase.
    """
    table, numbers = joined([report.facts.answers for report in reports])
    rows = np.arange(len(table))
    if len(rows) > MOST_ANSWERS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_ANSWERS, replace=False))
    ids: dict[str, int] = {}
    parts, sizes = [np.zeros((0, PHRASE), np.int64)], []
    for row in rows:
        number, record = int(numbers[row]), int(table["row"][row])
        text = dataset.record(number, record).turns[int(table["turn"][row])].text
        words = [ids.setdefault(word, len(ids)) for word in words_of(text.casefold())[:MOST_WORDS]]
        grams = np.zeros((0, PHRASE), np.int64)
        if len(words) >= PHRASE:
            grams = np.unique(np.lib.stride_tricks.sliding_window_view(np.array(words), PHRASE), axis=0)
        parts.append(grams)
        sizes.append(len(grams))
    grams, of = np.concatenate(parts), np.repeat(rows, sizes)
    _, first, counts = np.unique(_hashes(grams), return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:CANDIDATES]
    names = list(ids)
    found = [
        Phrase(
            [names[word] for word in grams[first[place]]],
            int(counts[place]),
            (int(numbers[of[first[place]]]), int(table["row"][of[first[place]]])),
        )
        for place in order
        if counts[place] >= max(FEWEST, SHARE * len(rows))
    ]
    return _together(found)[:MOST_PHRASES], len(rows)


def _hashes(grams: np.ndarray) -> np.ndarray:
    """A hash of 64 bits of each row."""
    value = np.zeros(len(grams), np.uint64)
    for column in grams.T:
        value = (value ^ (column.astype(np.uint64) + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    return value


def _together(found: list[Phrase]) -> list[Phrase]:
    """Sequences that go on each other, the most frequent phrase first."""
    phrases: list[Phrase] = []
    while found:
        phrase, left = found[0], found[1:]
        grown = True
        while grown:
            grown = False
            for other in left:
                if other.count < ALIKE * phrase.count:
                    continue
                if other.words[:-1] == phrase.words[1 - PHRASE :]:
                    phrase.words.append(other.words[-1])
                elif other.words[1:] == phrase.words[: PHRASE - 1]:
                    phrase.words.insert(0, other.words[0])
                else:
                    continue
                left.remove(other)
                grown = True
                break
        phrases.append(phrase)
        found = left
    return phrases
