"""What the checker notes of texts: their scripts, hashes that find equal ones, refusals, and repetition.

Scripts are Unicode's, from the names of characters (`unicodedata`). They tell Chinese from English and Russian, but not
English from French: both are Latin.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

import xxhash

IN_CHINESE = {
    "": "",
    "Latin": "拉丁文字",
    "Chinese": "中文",
    "Japanese": "日文",
    "Korean": "韩文",
    "Cyrillic": "西里尔文字",
    "Arabic": "阿拉伯文字",
    "Devanagari": "天城文",
    "Thai": "泰文",
    "Greek": "希腊文",
    "other": "其他",
}
SCRIPTS = tuple(IN_CHINESE)
BY_NAME = {  # first word of a character's Unicode name
    "LATIN": "Latin",
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic",
    "DEVANAGARI": "Devanagari",
    "THAI": "Thai",
    "GREEK": "Greek",
}
DENSE = {"Chinese": 3, "Japanese": 3, "Korean": 3}  # letters of an alphabet that say as much as one character
SECOND = 0.25  # share from which a second script is named
LOOKED_AT = 4000  # characters of a text whose scripts are counted
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
OPENING = 3  # words with which answers are compared
GRAM, LONG, REPEATED = 4, 24, 0.5  # words of an n-gram; words of an answer that is examined; share that is too much
REFUSAL_WITHIN = 160  # characters from the start of an answer
REFUSAL = re.compile(
    r"\b(i['’]?m|i am|we are) (very |really |so |terribly )?sorry\b|\bas an? (ai|language model|artificial)\b"
    r"|\bi (cannot|can['’]?t|can not|am unable to|am not able to|won['’]?t be able to)\b"
    r"|\bi['’]m (unable|not able) to\b"
    r"|抱歉|对不起|(我|系统)?(无法|不能)(提供|回答|识别|协助|满足|确定|看到|帮助)|作为(一个|一名)?(AI|人工智能|语言模型)",
    re.IGNORECASE,
)


def hash_text(text: str) -> int:
    """A hash of 64 bits."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def normalize(text: str) -> str:
    """A text as duplicates are compared: compatibility forms, case, white space and final punctuation don't count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!！ ")


def words_of(text: str) -> list[str]:
    """Words; each Chinese, Japanese or Korean character is one."""
    return WORD.findall(text)


def opening_of(text: str) -> str:
    """The first words of an answer."""
    words = words_of(text.casefold()[:200])[:OPENING]
    return (" " if all(word.isascii() for word in words) else "").join(words)


def is_refusal(text: str) -> bool:
    """Whether an answer begins as refusals do, in English or Chinese."""
    return REFUSAL.search(text[:REFUSAL_WITHIN]) is not None


def is_repetitive(words: list[str]) -> bool:
    """Whether more than half of an answer's sequences of four words have come before in it."""
    if len(words) < LONG:
        return False
    grams = list(zip(*(words[place:] for place in range(GRAM)), strict=False))
    return len(set(grams)) < (1 - REPEATED) * len(grams)


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return BY_NAME.get(unicodedata.name(character, "").partition(" ")[0], "other") if character.isalpha() else ""


def script_code(text: str) -> int:
    """The script of a text, with the second where much of it is in another; see `script_name`."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text[:LOOKED_AT]).items():
        script = _script(character)
        letters[script] += count * DENSE.get(script, 1)
    del letters[""]
    if letters["Japanese"]:  # written with Chinese characters, too
        letters["Japanese"] += letters.pop("Chinese", 0)
    ranked = [(script, count) for script, count in letters.most_common(2) if count]
    if not ranked:
        return 0
    second = SCRIPTS.index(ranked[1][0]) if len(ranked) > 1 and ranked[1][1] >= SECOND * letters.total() else 0
    return 16 * SCRIPTS.index(ranked[0][0]) + second


def script_name(code: int, *, in_chinese: bool = False) -> str:
    """Such as "Latin" or "Chinese + Latin"; "" for a text without letters."""
    names = list(IN_CHINESE.values()) if in_chinese else SCRIPTS
    first, second = names[code // 16], names[code % 16]
    return f"{first} + {second}" if second else first
