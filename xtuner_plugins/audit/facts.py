"""What the check keeps of records and images: hashes that find copies, and flags of answers.

records   one row per usable record: hashes of its text, with and without its images, and of its first answer
images    one row per image (of a video its first frame): size, hashes of name and pixels, and its look
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import xxhash
from PIL import Image

from ..datasets.records.records import Record

RECORD = np.dtype([("row", "i4"), ("text", "u8"), ("whole", "u8"), ("answer", "u8"), ("flags", "u1")])
IMAGE = np.dtype(
    [(name, "i4") for name in ("row", "width", "height")] + [("name", "u8"), ("pixels", "u8"), ("look", "u8", 2)]
)
REFUSES, REPEATS = 1, 2  # bits of a record's flags
SIDE = 8  # a look compares the neighbors among 9 x 9 gray values
GRAM, LONG, REPEATED = 4, 24, 0.5  # words of an n-gram; words of an answer that is examined; share that is too much
REFUSAL_WITHIN = 160  # characters from the start of an answer
REFUSAL = re.compile(
    r"\b(i['’]?m|i am|we are) (very |really |so |terribly )?sorry\b|\bas an? (ai|language model|artificial)\b"
    r"|\bi (cannot|can['’]?t|can not|am unable to|am not able to|won['’]?t be able to)\b"
    r"|\bi['’]m (unable|not able) to\b"
    r"|抱歉|对不起|(我|系统)?(无法|不能)(提供|回答|识别|协助|满足|确定|看到|帮助)|作为(一个|一名)?(AI|人工智能|语言模型)",
    re.IGNORECASE,
)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def hash_text(text: str) -> int:
    """A hash of 64 bits."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def normalize(text: str) -> str:
    """A text as copies are compared: compatibility forms, case, white space and final punctuation don't count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!！ ")


def is_refusal(text: str) -> bool:
    """Whether an answer begins as refusals do, in English or Chinese."""
    return REFUSAL.search(text[:REFUSAL_WITHIN]) is not None


def is_repetitive(text: str) -> bool:
    """Whether more than half of an answer's sequences of four words (or Chinese characters) have come before in it."""
    words = WORD.findall(text)
    grams = list(zip(*(words[place:] for place in range(GRAM)), strict=False))
    return len(words) >= LONG and len(set(grams)) < (1 - REPEATED) * len(grams)


def look_at(image: Image.Image, size: tuple[int, int], content: bytes | None) -> tuple:
    """Width, height, hash of the pixels and look of an RGB image.

    A look is a dHash in both directions: where gray values rise to the right, and downwards. Other compression,
    brightness and scale change few of its 2 x 64 bits.

    Args:
        size: of the whole image, where this is a reduced one.
        content: what decides the pixels of the whole image; None: this image does.
    """
    gray = np.asarray(image.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.int16)
    rises = gray[:SIDE, 1:] > gray[:SIDE, :-1], gray[1:, :SIDE] > gray[:-1, :SIDE]
    look = tuple(int(np.packbits(rise).view(np.uint64)[0]) for rise in rises)
    content = repr(image.size).encode() + image.tobytes() if content is None else content
    return *size, xxhash.xxh3_64_intdigest(content), look


def note(row: int, record: Record, images: Sequence[tuple]) -> tuple:
    """The row of a record in the table of records.

    Args:
        images: rows of the table of images.
    """
    texts = [turn.text for turn in record.turns]
    answers = [turn.text for turn in record.turns if turn.role == "assistant"]
    text = "\n".join(map(normalize, texts))
    flags = REFUSES * any(map(is_refusal, answers)) + REPEATS * any(map(is_repetitive, answers))
    whole = hash_text(text + "".join(str(image[4]) for image in images))
    return row, hash_text(text), whole, hash_text(normalize(answers[0] if answers else "")), flags
