"""What a careful person wants to know of data before training: each finding counted, with examples by name."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..datasets.plan.lengths import SHRUNK, TRUNCATED
from .check import Checked, FileReport
from .facts import REFUSES, REPEATS, joined

MOST_EXAMPLES = 24  # of each finding
MOST_ROWS = 4  # of an example
BITS = 128  # of a look: 64 across, 64 down
NEAR = 5  # bits in which two looks may differ
BANDS = NEAR + 1  # two such looks are equal in at least one of so many parts
WINDOW = 48  # neighbors that a look is compared with where more share a part
FLAT = 10  # looks with fewer bits set are of images without structure, and all alike
UPSCALED = 9.0  # pixels of the grid for each of the image
EXTREME = 5.0  # longer side over the shorter one
OFTEN, FEW = 0.05, 20  # share of a file's records with one answer; with fewer records nothing is often

Place = tuple[int, int, int]  # data (0: training, from 1 on: validation), file, row


@dataclass
class Finding:
    """Something that was found.

    Attributes:
        kind: key of `WORDS`.
        count: records or images that it is about.
        total: how many were looked at.
        where: names of files (or of two files) -> count.
        examples: records that belong together.
    """

    kind: str
    count: int
    total: int
    where: Counter = field(default_factory=Counter)
    examples: list[list[Place]] = field(default_factory=list)


# Titles and remedies by the kind of finding, in English and Chinese
TITLES = {
    "leaked_records": ("validation records that are training records, too", "同时也在训练数据中的验证记录"),
    "leaked_images": ("validation images that are training images, too", "同时也在训练数据中的验证图像"),
    "leaked_looks": ("validation images that look like one of the training data", "与训练图像近乎相同的验证图像"),
    "equal_records": ("records that repeat another: equal text and equal images", "文字和图像都与另一条相同的记录"),
    "equal_images": ("images with the pixels of another file or data set", "像素与另一个文件或数据集中的图像相同"),
    "near_images": ("images that look like another one", "与另一张近乎相同的图像"),
    "equal_texts": ("records with the text of another, about other images", "图像不同而文字与另一条完全相同的记录"),
    "frequent_answers": (
        "records whose first answer is the first of over 5 % of their file",
        "首个回答占同文件 5 % 以上的记录",
    ),
    "refusals": ("records with an answer that refuses", "含有拒绝回答的记录"),
    "repetitive": ("records with an answer that repeats over half of its 4-word sequences", "含有自我重复回答的记录"),
    "upscaled": ("images enlarged to more than three times their sides", "放大到边长三倍以上的图像"),
    "extreme": ("images more than five times as long as wide, or as wide as long", "长宽比超过 5 的图像"),
    "shrink_tiles": ("records with fewer tiles, to fit max_length", "为满足 max_length 而减少图块的记录"),
    "truncate_text": ("records with their end cut off, to fit max_length", "为满足 max_length 而截去末尾的记录"),
}
REMEDIES = {
    "leaked_records": ("remove them from one of the two: the loss rewards memory", "从其中一方删去：否则损失奖励记忆"),
    "leaked_images": ("split by images, not by records", "按图像而不是按记录划分"),
    "leaked_looks": (
        "recompressed or scaled copies are leaks, too: see the cards",
        "请查看卡片：缩放的副本同样属于泄漏",
    ),
    "equal_records": (
        "remove the copies, or repeat on purpose with repeat_times",
        "删去副本；有意重复时用 repeat_times",
    ),
    "equal_images": (
        "other questions are fine; copies of a whole data set aren't",
        "同图不同问没有问题；整份重复则不行",
    ),
    "near_images": (
        "see the cards: frames of one film, or copies in another size",
        "请查看卡片：视频的帧，或缩放的副本",
    ),
    "equal_texts": ("an answer that fits every image teaches to ignore them", "对任何图像都成立的回答会让模型忽略图像"),
    "frequent_answers": (
        "a model that always gives it is right that often: balance the answers",
        "总是这样回答也同样正确；请平衡回答",
    ),
    "refusals": ("keep them only if the model should refuse, too", "除非希望模型拒绝，否则请删去"),
    "repetitive": ("often the output of a model that was cut off; remove them", "多为被截断的模型输出；请删去"),
    "upscaled": (
        "small images cost many tokens: lower max_tiles of their file",
        "小图也耗费很多词元：可调低 max_tiles",
    ),
    "extreme": ("grids reach a ratio of max_tiles; more is squeezed", "网格长宽比至多为 max_tiles；超出会被压扁"),
    "shrink_tiles": ("raise max_length, or lower max_tiles for all", "调高 max_length，或统一调低 max_tiles"),
    "truncate_text": ("raise max_length, or shorten them", "调高 max_length，或缩短这些记录"),
}
WORDS = {kind: TITLES[kind] + REMEDIES[kind] for kind in TITLES}

Held = Sequence[tuple[Checked, Sequence[FileReport]]]


class _Data:
    """The tables of a data set, all files behind each other; an image file that several records name is one image."""

    def __init__(self, data: int, reports: Sequence[FileReport]):
        self.data, self.names = data, [report.source.name for report in reports]
        self.records, self.of_records = joined([report.records for report in reports])
        images, of_images = joined([report.images for report in reports])
        keys = images["name"] ^ (of_images.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        first = _firsts(keys)
        self.images, self.of_images = images[first], of_images[first]

    def of(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        """A table, and the number of the file of each row."""
        return getattr(self, table), getattr(self, f"of_{table}")

    def places(self, table: str, rows: Sequence[int]) -> list[Place]:
        """The records of some rows of a table."""
        values, numbers = self.of(table)
        return list(dict.fromkeys((self.data, int(numbers[row]), int(values["row"][row])) for row in rows[:MOST_ROWS]))

    def finding(self, kind: str, table: str, rows: np.ndarray) -> Finding:
        """Rows that each show the same."""
        values, numbers = self.of(table)
        counts = Counter(np.array(self.names)[numbers[rows]].tolist())
        shown = rows[np.linspace(0, len(rows) - 1, min(MOST_EXAMPLES, len(rows))).astype(int)] if len(rows) else rows
        return Finding(kind, len(rows), len(values), counts, [self.places(table, [row]) for row in shown])

    def copies(self, kind: str, table: str, groups: Sequence[Sequence[int]]) -> Finding:
        """Rows that repeat the first of their group, counted by the files of both."""
        values, numbers = self.of(table)
        count = len({int(row) for group in groups for row in group[1:]})
        finding = Finding(kind, count, len(values), examples=[self.places(table, g) for g in groups[:MOST_EXAMPLES]])
        for group in groups:
            for row in group[1:]:
                both = sorted({self.names[numbers[group[0]]], self.names[numbers[row]]})
                finding.where[" / ".join(both)] += 1
        return finding


def find(dataset: Checked, reports: Sequence[FileReport], validation: Held = ()) -> list[Finding]:
    """Everything that was found in training data, in the order of `WORDS`.

    Args:
        validation: data that shall hold nothing of the training data, with their reports.
    """
    train = _Data(0, reports)
    records, flags = train.records, train.records["flags"]
    others = _firsts(records["whole"])  # so that only other images count as equal texts
    found = [
        *_leaks(train, [_Data(number, held) for number, (_, held) in enumerate(validation, 1)]),
        train.copies("equal_records", "records", groups(records["whole"])),
        train.copies("equal_images", "images", groups(train.images["pixels"])),
        train.copies("near_images", "images", _near(train.images)),
        train.copies("equal_texts", "records", [others[group] for group in groups(records["text"][others])]),
        train.finding("frequent_answers", "records", _frequent(train)),
        train.finding("refusals", "records", np.flatnonzero(flags & REFUSES)),
        train.finding("repetitive", "records", np.flatnonzero(flags & REPEATS)),
        *_shapes(dataset, train),
        *_fates(train, reports),
    ]
    return [each for each in found if each.count]


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Rows whose key hasn't come before, in their order."""
    return np.sort(np.unique(keys, return_index=True)[1])


def groups(keys: np.ndarray) -> list[np.ndarray]:
    """Rows with equal keys, for keys that occur more than once; the largest groups first."""
    order = np.argsort(keys, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: -len(part))


def _near(images: np.ndarray) -> list[np.ndarray]:
    """Images that aren't equal to, but look like another one, with that one first."""
    first = _firsts(images["pixels"])
    _, where, inverse = np.unique(images["look"][first], axis=0, return_index=True, return_inverse=True)
    same = [first[group] for group in groups(inverse.reshape(-1)) if _has_structure(images["look"][first[group[0]]])]
    pairs = near_pairs(images["look"][first[where]])
    return [*same, *np.sort(first[where][pairs], axis=1)]


def _has_structure(look: np.ndarray) -> bool:
    return int(np.bitwise_count(look).sum()) >= FLAT


def near_pairs(looks: np.ndarray) -> np.ndarray:
    """Pairs of rows whose looks differ in at most `NEAR` bits: int64 `[n, 2]`, each pair once, i < j.

    Where more than `WINDOW` rows share a part, each is compared with the next of them in the order of their looks.

    Args:
        looks: uint64 `[r, 2]`, distinct.
    """
    looks = np.ascontiguousarray(looks).reshape(-1, 2)
    rows = np.flatnonzero(np.bitwise_count(looks).sum(1) >= FLAT)
    bits = np.unpackbits(looks[rows].view(np.uint8), axis=1)
    found = [np.zeros((0, 2), np.int64)]
    for part in np.array_split(np.arange(BITS), BANDS):
        keys = np.zeros(len(rows), np.uint64)
        for bit in part:
            keys = (keys << np.uint64(1)) | bits[:, bit].astype(np.uint64)
        order = np.lexsort((looks[rows, 1], looks[rows, 0], keys))
        for left, right in _neighbors(keys[order]):
            pairs = np.column_stack([rows[order[left]], rows[order[right]]])
            different = np.bitwise_count(looks[pairs[:, 0]] ^ looks[pairs[:, 1]]).sum(1)
            found.append(np.sort(pairs[different <= NEAR], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _neighbors(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in a sorted column, paired with others of the same key up to `WINDOW` places on."""
    for distance in range(1, WINDOW + 1):
        left = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(left):
            return
        yield left, left + distance


def _leaks(train: _Data, validation: Sequence[_Data]) -> Iterator[Finding]:
    """Records and images of validation data that the training data has, and images that look like one of its own."""
    for kind, table in (("leaked_records", "records"), ("leaked_images", "images"), ("leaked_looks", "images")):
        finding = Finding(kind, 0, sum(len(held.of(table)[0]) for held in validation))
        (own, numbers) = train.of(table)
        for held in validation:
            theirs, of_theirs = held.of(table)
            partners = _alike(theirs, own) if kind == "leaked_looks" else _partners(table, theirs, own)
            leaked = np.flatnonzero(partners >= 0)
            finding.count += len(leaked)
            finding.where.update(
                f"{held.names[of_theirs[row]]} / {train.names[numbers[partners[row]]]}" for row in leaked
            )
            for row in leaked[: MOST_EXAMPLES - len(finding.examples)]:
                finding.examples.append([*held.places(table, [row]), *train.places(table, [partners[row]])])
        yield finding


def _partners(table: str, theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    """For each row the first of `own` with the same text and images, or the same pixels; -1 for none."""
    key = "whole" if table == "records" else "pixels"
    known, first = np.unique(own[key], return_index=True)
    if not len(known):
        return np.full(len(theirs), -1)
    place = np.minimum(np.searchsorted(known, theirs[key]), len(known) - 1)
    return np.where(known[place] == theirs[key], first[place], -1)


def _alike(theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    """For each image one of `own` that looks like it but has other pixels; -1 for none."""
    looks, inverse = np.unique(np.concatenate([theirs["look"], own["look"]]), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    partners = np.full(len(looks), -1)  # a training image with, or else near, each look
    partners[inverse[len(theirs) :]] = np.arange(len(own))
    exact, near = partners.copy(), near_pairs(looks)
    for left, right in np.concatenate([near, near[:, ::-1]]):
        if partners[left] < 0:
            partners[left] = exact[right]
    found = partners[inverse[: len(theirs)]]
    flat = np.bitwise_count(theirs["look"]).sum(1) < FLAT
    return np.where(flat | (_partners("images", theirs, own) >= 0), -1, found)


def _frequent(train: _Data) -> np.ndarray:
    found = [np.zeros(0, np.int64)]
    for number in range(len(train.names)):
        rows = np.flatnonzero(train.of_records == number)
        _, inverse, counts = np.unique(train.records["answer"][rows], return_inverse=True, return_counts=True)
        found.append(rows[(counts[inverse] > OFTEN * len(rows)) & (len(rows) >= FEW) & (counts[inverse] > 1)])
    return np.concatenate(found)


def _shapes(dataset: Checked, train: _Data) -> Iterator[Finding]:
    images, numbers = train.of("images")
    areas = np.zeros(len(images), np.int64)  # of the grids, in pixels
    for number, source in enumerate(dataset.sources):
        rows = np.flatnonzero(numbers == number)
        sizes, inverse = np.unique(images[["width", "height"]][rows], return_inverse=True)
        tiles = [source.tiling.grid(int(width), int(height)) for width, height in sizes]
        each = [grid.columns * grid.rows * source.tiling.tile_size**2 for grid in tiles]
        areas[rows] = np.array(each, np.int64)[inverse.reshape(-1)]
    width, height = images["width"].astype(np.int64), images["height"].astype(np.int64)
    yield train.finding("upscaled", "images", np.flatnonzero(areas > UPSCALED * width * height))
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    yield train.finding("extreme", "images", np.flatnonzero(longer > EXTREME * shorter))


def _fates(train: _Data, reports: Sequence[FileReport]) -> Iterator[Finding]:
    for kind, fate in (("shrink_tiles", SHRUNK), ("truncate_text", TRUNCATED)):
        rows = [np.isin(report.records["row"], report.rows(fate)) for report in reports]
        yield train.finding(kind, "records", np.flatnonzero(np.concatenate(rows)))
