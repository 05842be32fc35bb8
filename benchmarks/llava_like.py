"""Records in the shape of LLaVA-1.5's mixture of 665,000, told in real English: what the benchmarks measure on.

The shares of the sources, their turns and the lengths of their texts follow `llava_v1_5_mix665k.json` (its 1.03 GB
are 1.5 KB a record); the words are prose that every machine with this project has, the docstrings and descriptions of
installed packages, cut at sentences or within them. Nothing is downloaded, and no text is repeated on purpose but the
mixture's own fixed prompts.
"""

import importlib.metadata
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from xtuner_plugins.datasets.images.tiling import DynamicTiling

BRIEFLY = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
REGION = "Please provide a short description for this region: "
WHERE = "Please provide the bounding box coordinate of the region this sentence describes: "

# thousands of records, pairs of turns (mean), words of a question, words of an answer, prompt, image
SOURCES = {
    "conversation": (56.7, 4, 9, 22, "", True),
    "detail": (23.2, 1, 8, 95, "", True),
    "reasoning": (76.6, 1, 15, 100, "", True),
    "sharegpt": (40.7, 4, 40, 150, "", False),
    "vqav2": (82.8, 5.4, 6, 1, BRIEFLY, True),
    "gqa": (72.1, 13, 9, 1, BRIEFLY, True),
    "okvqa": (9.0, 1.5, 8, 1, BRIEFLY, True),
    "ocrvqa": (80.0, 5, 7, 4, BRIEFLY, True),
    "aokvqa": (66.2, 1, 18, 1, LETTER, True),
    "textcaps": (22.0, 1, 30, 12, "", True),
    "refcoco": (48.4, 6, 8, 0, WHERE, True),
    "regions": (86.4, 9, 0, 6, REGION, True),
}


def read_prose(megabytes: float = 4) -> list[str]:
    """Distinct paragraphs of English from what is installed, in a fixed order."""
    found: dict[str, None] = {}
    size = 0
    for text in _documents():
        for paragraph in re.split(r"\n\s*\n", text):
            paragraph = " ".join(paragraph.split())
            if len(paragraph) < 80 or paragraph[-1] not in ".!?" or set(paragraph) & {"<", ">"}:
                continue
            letters = sum(char.isalpha() or char == " " for char in paragraph)
            if letters > 0.9 * len(paragraph) and paragraph not in found:
                found[paragraph] = None
                size += len(paragraph)
        if size > megabytes * 1e6:
            break
    return list(found)


def _documents() -> Iterator[str]:
    for package in sorted(importlib.metadata.distributions(), key=lambda part: part.metadata["Name"] or ""):
        yield package.metadata.get_payload() or ""
    site = Path(sysconfig.get_paths()["purelib"])
    for package in ("torch", "transformers", "numpy"):
        for path in sorted((site / package).rglob("*.py")):
            source = path.read_text(encoding="utf-8", errors="ignore")
            yield from re.findall(r'"""(.*?)"""', source, re.S)


class LlavaLike:
    """Generates records.

    Args:
        images: names for the records that have an image; empty gives text alone, everything else the same.
        seed: decides everything.
    """

    def __init__(self, images: list[str] = (), seed: int = 0):
        self.random, self.images = Random(seed), list(images)
        self.words = " ".join(read_prose()).split()

    def record(self, number: int) -> dict:
        """One raw record."""
        random = self.random
        kind = random.choices(list(SOURCES), [source[0] for source in SOURCES.values()])[0]
        _, pairs, question, answer, prompt, has_image = SOURCES[kind]
        turns = []
        for pair in range(1 if pairs == 1 else max(1, round(random.lognormvariate(-0.125, 0.5) * pairs))):
            asked = self._asked(question, prompt, first=pair == 0)
            turns.append({"from": "human", "value": asked})
            turns.append({"from": "gpt", "value": self._words(answer, ".") if answer else self._box()})
        record = {"id": f"{kind}-{number:09}", "conversations": turns}
        if has_image and self.images:
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            record["image"] = random.choice(self.images)
        return record

    def write(self, path: Path, num: int) -> None:
        """`num` records as JSON lines."""
        with open(path, "w", encoding="utf-8") as file:
            for number in range(num):
                file.write(json.dumps(self.record(number), ensure_ascii=False) + "\n")

    def _asked(self, length: int, prompt: str, first: bool) -> str:
        if prompt == REGION:
            return REGION + self._box() + "."
        if prompt == WHERE:
            return WHERE + self._words(length, ".")
        if prompt == LETTER:
            return (
                "{}\nA. {}\nB. {}\nC. {}\nD. {}".format(self._words(9, "?"), *(self._words(2, "") for _ in range(4)))
                + LETTER
            )
        return self._words(length, "?") + (prompt if first else "")

    def _words(self, mean: int, end: str) -> str:
        """About `mean` neighboring words of the prose; exactly one where `mean` is 1."""
        random = self.random
        length = 1 if mean == 1 else max(1, round(random.lognormvariate(-0.125, 0.5) * mean))
        first = random.randrange(len(self.words) - length)
        text = " ".join(self.words[first : first + length])
        text = text[:1].upper() + text[1:]
        return text if length < 3 or text[-1] in ".?!" else text.rstrip(",;:") + end

    def _box(self) -> str:
        left, top = self.random.random() * 0.8, self.random.random() * 0.8
        right, bottom = left + self.random.random() * (1 - left), top + self.random.random() * (1 - top)
        return f"[{left:.2f}, {top:.2f}, {right:.2f}, {bottom:.2f}]"


def like_llava_665k(num: int, max_tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and tiles in the shares of llava_v1_5_mix665k: text only, COCO-like images, book covers, scenes."""
    rng = np.random.default_rng(0)
    kinds = rng.choice(4, num, p=np.array([40.7, 522.4, 80.0, 22.0]) / 665.1)
    coco = [(640, 480)] * 5 + [(480, 640)] * 2 + [(640, 427)] * 4 + [(640, 640), (500, 375), (612, 612), (427, 640)]
    tokens, tiles = np.zeros(num, np.int64), np.zeros(num, np.int64)
    rule, medians, spreads = DynamicTiling(max_tiles=max_tiles), (812, 181, 148, 110), (0.7, 0.6, 0.4, 0.4)
    for row, kind in enumerate(kinds):
        tokens[row] = np.clip(rng.lognormal(np.log(medians[kind]), spreads[kind]), 60, 4000)
        if kind == 0:
            continue
        if kind == 1:
            size = coco[rng.integers(len(coco))] if rng.random() < 0.75 else tuple(map(int, rng.integers(300, 641, 2)))
        else:
            size = (
                (int(rng.integers(200, 400)), int(rng.integers(380, 500)))
                if kind == 2
                else (1024, int(rng.integers(600, 1025)))
            )
        tiles[row] = rule.grid(*size).num_tiles
        tokens[row] += 256 * tiles[row] + 2
    return tokens, tiles
