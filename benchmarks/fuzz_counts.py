"""The fast counts of tokens beside the tokenizer's own, on texts of many scripts; the first difference stops it.

    python benchmarks/fuzz_counts.py --tokenizer DIR [DIR ...] [--texts 300000]

Texts: turns of real English, program source, and words drawn from thirty scripts, mixed, with the white space,
punctuation, digits, emoji and combining marks that tokenizers stumble over. DIR is a model directory.
"""

import argparse
import inspect
import os
import sys
import typing
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_like import LlavaLike

from xtuner_plugins.datasets.text.token_counts import TokenCounter
from xtuner_plugins.datasets.text.tokens import TextTokenizer

# First and last characters of scripts
SCRIPTS = [
    ("a", "z"),
    ("A", "Z"),
    ("\u00c0", "\u024f"),
    ("\u0300", "\u036f"),
    ("\u0370", "\u03ff"),
    ("\u0400", "\u04ff"),
    ("\u0530", "\u058f"),
    ("\u0590", "\u05ff"),
    ("\u0600", "\u06ff"),
    ("\u0900", "\u097f"),
    ("\u0980", "\u09ff"),
    ("\u0b80", "\u0bff"),
    ("\u0e00", "\u0e7f"),
    ("\u0f00", "\u0fff"),
    ("\u10a0", "\u10ff"),
    ("\u1100", "\u11ff"),
    ("\u1200", "\u137f"),
    ("\u1780", "\u17ff"),
    ("\u1e00", "\u1eff"),
    ("\u1f00", "\u1fff"),
    ("\u2000", "\u206f"),
    ("\u2070", "\u218f"),
    ("\u2190", "\u2bff"),
    ("\u3000", "\u30ff"),
    ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"),
    ("\uac00", "\ud7a3"),
    ("\uf900", "\ufaff"),
    ("\ufb00", "\ufdff"),
    ("\ufe00", "\uffef"),
    ("\U00010000", "\U000107ff"),
    ("\U0001d400", "\U0001d7ff"),
    ("\U0001f300", "\U0001faff"),
    ("\0", "\x7f"),
]
GLUE = [
    " ",
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    " \n",
    "\n ",
    "\r\n",
    "\t",
    " \t",
    "\u00a0",
    "\u3000",
    "\x1c",
    "\x85",
    "",
]
BITS = [
    "'s",
    "'LL",
    "don't",
    ".",
    "...",
    "!?",
    "<box>",
    "[[1, 22]]",
    "1234567",
    "3.14",
    "a_b",
    "e\u0301",
    "\u200d",
    "#",
]


def words(random: Random) -> str:
    """A text of words in a few scripts."""
    scripts = random.sample(SCRIPTS, random.randrange(1, 4))
    parts = []
    for _ in range(random.randrange(1, 12)):
        if random.random() < 0.25:
            parts.append(random.choice(BITS))
        else:
            first, last = random.choice(scripts)
            parts.append("".join(chr(random.randint(ord(first), ord(last))) for _ in range(random.randrange(1, 9))))
        parts.append(random.choice(GLUE))
    return "".join(parts)


def all_texts(num: int, seed: int) -> typing.Iterator[str]:
    """A third of each kind."""
    random, records = Random(seed), LlavaLike(seed=seed)
    source = inspect.getsource(typing) + inspect.getsource(argparse)
    english: list[str] = []
    for number in range(num):
        if number % 3 == 0:
            if not english:
                english = [turn["value"] for turn in records.record(number)["conversations"]]
            yield english.pop()
        elif number % 3 == 1:
            first = random.randrange(len(source))
            yield source[first : first + random.randrange(400)]
        else:
            yield words(random)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--texts", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for directory in args.tokenizer:
        tokenizer = TextTokenizer.from_pretrained(directory)
        counter = TokenCounter(tokenizer)
        ways = [name for name, used in (("words", counter.by_words), ("tiktoken", counter.fast)) if used]
        done, batch = 0, []
        for text in [*all_texts(args.texts, args.seed), None]:
            if text is not None:
                batch.append(text)
                if len(batch) < 2000:
                    continue
            exact = tokenizer.encode_batch(batch)
            for text, ours, own in zip(batch, counter.count_fast(batch), exact, strict=True):
                if ours != len(own):
                    sys.exit(f"{directory}: {ours} instead of {len(own)} tokens of {text!r}")
            done, batch = done + len(batch), []
        print(f"{directory}: {done} texts equal by {' and '.join(ways) or 'nothing'}")


if __name__ == "__main__":
    main()
