"""What a careful person wants to know of data before training: each finding counted, with examples by name."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..datasets.plan.budget import SHRUNK, TRUNCATED
from .check import Checked, FileReport

MOST_EXAMPLES = 24  # of each finding
MOST_ROWS = 4  # of an example
BITS = 128  # of a look: 64 across, 64 down
NEAR = 5  # bits in which two looks may differ
BANDS = NEAR + 1  # two such looks are equal in at least one of so many parts
WINDOW = 48  # neighbors that a look is compared with where more share a part
FLAT = 10  # looks with fewer bits set are of images without structure, and all alike
UPSCALED = 9.0  # pixels of the grid for each of the image
EXTREME = 5.0  # longer side over the shorter one
FITTED = (("shrink_tiles", SHRUNK), ("truncate_text", TRUNCATED))

Place = tuple[int, int, int]  # data (0: training, from 1 on: validation), file, row


@dataclass
class Finding:
    """Something that was found."""

    kind: str  # key of `WORDS`
    count: int  # records or images that it is about
    total: int  # how many were looked at
    where: Counter = field(default_factory=Counter)  # names of files (or of two files) -> count
    examples: list[list[Place]] = field(default_factory=list)  # records that belong together


# Titles and remedies by the kind of finding, in English and Chinese
TITLES = {
    "leaked_records": ("validation records that are training records, too", "同时也在训练数据中的验证记录"),
    "leaked_images": ("validation images that are training images, too", "同时也在训练数据中的验证图像"),
    "leaked_looks": ("validation images that look like one of the training data", "与训练图像近乎相同的验证图像"),
    "equal_records": ("records that repeat another: equal text and equal images", "文字和图像都与另一条相同的记录"),
    "equal_images": ("images with the pixels of another file or data set", "像素与另一个文件或数据集中的图像相同"),
    "near_images": ("images that look like another one", "与另一张近乎相同的图像"),
    "equal_texts": ("records with the text of another, about other images", "图像不同而文字与另一条完全相同的记录"),
    "upscaled": ("images enlarged to more than three times their sides", "放大到边长三倍以上的图像"),
    "extreme": ("images more than five times as long as wide, or as wide as long", "长宽比超过 5 的图像"),
    "shrink_tiles": ("records with fewer tiles, to fit max_length", "为满足 max_length 而减少图块的记录"),
    "truncate_text": ("records with their end cut off, to fit max_length", "为满足 max_length 而截去末尾的记录"),
}
REMEDIES = {
    "leaked_records": ("remove them from one of the two: the loss rewards memory", "从其中一方删去：否则损失奖励记忆"),
    "leaked_images": ("split by images, not by records", "按图像而不是按记录划分"),
    "leaked_looks": ("recompressed or scaled copies are leaks, too: see the cards", "缩放的副本同样属于泄漏，见卡片"),
    "equal_records": ("remove the copies, or use repeat_times instead", "删去副本，或改用 repeat_times"),
    "equal_images": ("other questions are fine; copies of a whole data set aren't", "同图不同问没有问题；整份重复不行"),
    "near_images": ("see the cards: frames of one film, or copies in another size", "视频的帧，或缩放的副本，见卡片"),
    "equal_texts": ("an answer that fits every image teaches to ignore them", "对任何图像都成立的回答会让模型忽略图像"),
    "upscaled": ("small images cost many tokens: lower the file's max_tiles", "小图也耗费词元：可调低 max_tiles"),
    "extreme": ("grids reach a ratio of max_tiles; more is squeezed", "网格长宽比至多为 max_tiles；超出会被压扁"),
    "shrink_tiles": ("raise max_length, or lower max_tiles for all", "调高 max_length，或统一调低 max_tiles"),
    "truncate_text": ("raise max_length, or shorten them", "调高 max_length，或缩短这些记录"),
}
WORDS = {kind: TITLES[kind] + REMEDIES[kind] for kind in TITLES}

Held = Sequence[tuple[Checked, Sequence[FileReport]]]


@dataclass(frozen=True)
class _Table:
    """The records or the images of all data, those of the training data first."""

    rows: np.ndarray  # of a table of `opening`
    files: Sequence[tuple[int, int, str]]  # (data, number, name) of each file
    of: np.ndarray  # index in `files`, for each row
    num_train: int  # how many rows are training data's

    @classmethod
    def join(cls, name: str, data: Held) -> "_Table":
        """Table `name` of all reports; an image file that several records of a file name is one image."""
        reports = [(at, number, each) for at, (_, own) in enumerate(data) for number, each in enumerate(own)]
        tables = [getattr(report, name) for *_, report in reports]
        if name == "images":
            tables = [table[_firsts(table["name"])] for table in tables]
        of = np.repeat(np.arange(len(tables)), list(map(len, tables)))
        files = [(at, number, report.source.name) for at, number, report in reports]
        return cls(np.concatenate(tables), files, of, sum(map(len, tables[: len(data[0][1])])))

    def examples(self, rows: Sequence[int]) -> list[Place]:
        """The records of some rows."""
        found = [(*self.files[self.of[row]][:2], int(self.rows["row"][row])) for row in rows[:MOST_ROWS]]
        return list(dict.fromkeys(found))

    def finding(self, kind: str, rows: np.ndarray) -> Finding:
        """Rows that each show the same."""
        where = Counter(self.files[file][2] for file in self.of[rows])
        shown = rows[np.linspace(0, len(rows) - 1, min(MOST_EXAMPLES, len(rows))).astype(int)]
        return Finding(kind, len(rows), self.num_train, where, [self.examples([row]) for row in shown])

    def copies(self, kind: str, groups: Sequence[np.ndarray]) -> Finding:
        """Training data's rows that repeat the first of their group, counted by the files of both."""
        own = [part for group in groups if len(part := group[group < self.num_train]) > 1]
        count = len({int(row) for group in own for row in group[1:]})
        where = Counter(self._files(sorted, group[0], row) for group in own for row in group[1:])
        return Finding(kind, count, self.num_train, where, [self.examples(group) for group in own[:MOST_EXAMPLES]])

    def leaks(self, kind: str, groups: Sequence[np.ndarray]) -> Finding:
        """Rows of validation data in a group with training data's, counted by the files of both."""
        pairs = {int(row): group[0] for group in groups for row in group if group[0] < self.num_train <= row}
        where = Counter(self._files(list, row, partner) for row, partner in pairs.items())
        examples = [self.examples(pair) for pair in sorted(pairs.items())[:MOST_EXAMPLES]]
        return Finding(kind, len(pairs), len(self.rows) - self.num_train, where, examples)

    def _files(self, arrange: Callable, *rows: int) -> str:
        return " / ".join(arrange(dict.fromkeys(self.files[self.of[row]][2] for row in rows)))


def find(dataset: Checked, reports: Sequence[FileReport], validation: Held = ()) -> list[Finding]:
    """Everything that was found in training data, in the order of `WORDS`.

    Equal records have equal text and pixels, equal images equal pixels whatever their names, and near images looks that
    differ in at most `NEAR` bits (`opening.look_at`). A copy is counted once, beside the first of its kind.

    Args:
        dataset, reports: the training data, and what `check_dataset` returned for it.
        validation: data that shall hold nothing of the training data, with their reports.

    Returns:
        The findings that count something; none for data without any.
    """
    records, images = (_Table.join(name, [(dataset, reports), *validation]) for name in ("records", "images"))
    equal, same, near = groups(records.rows["whole"]), groups(images.rows["pixels"]), _near(images.rows)
    train = records.rows[: records.num_train]
    others = _firsts(train["whole"])  # so that only other images count as equal texts
    fates = [(kind, [np.isin(each.records["row"], each.rows(fate)) for each in reports]) for kind, fate in FITTED]
    found = [
        records.leaks("leaked_records", equal),
        images.leaks("leaked_images", same),
        images.leaks("leaked_looks", near),
        records.copies("equal_records", equal),
        images.copies("equal_images", same),
        images.copies("near_images", near),
        records.copies("equal_texts", [others[group] for group in groups(train["text"][others])]),
        *_shapes(dataset, images),
        *(records.finding(kind, np.flatnonzero(np.concatenate(rows))) for kind, rows in fates),
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
    """Groups of images that look alike, without those that have the pixels of an earlier one."""
    first = _firsts(images["pixels"])
    looks, inverse = np.unique(images["look"][first], axis=0, return_inverse=True)
    having = np.split(first[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])  # by look
    same = [rows for rows, look in zip(having, looks, strict=False) if len(rows) > 1 and _has_structure(look)]
    return same + [np.sort(np.concatenate([having[left], having[right]])) for left, right in near_pairs(looks)]


def _has_structure(looks: np.ndarray) -> np.ndarray:
    """Whether each look (uint64 `[..., 2]`) is one of an image with structure; all others look alike."""
    return np.bitwise_count(looks).sum(-1) >= FLAT


def near_pairs(looks: np.ndarray) -> np.ndarray:
    """Pairs of rows whose looks differ in at most `NEAR` bits: int64 `[n, 2]`, each pair once, i < j.

    Where more than `WINDOW` rows share a part, each is compared with the next of them.

    Args:
        looks: uint64 `[r, 2]`, distinct, in ascending order.
    """
    rows = np.flatnonzero(_has_structure(looks))
    bits = np.unpackbits(looks[rows].view(np.uint8), axis=1)
    found = [np.zeros((0, 2), np.int64)]
    for part in np.array_split(np.arange(BITS), BANDS):
        keys = bits[:, part] @ (1 << np.arange(len(part)))
        order = np.argsort(keys, kind="stable")
        for distance in range(1, WINDOW + 1):
            left = np.flatnonzero(keys[order[distance:]] == keys[order[:-distance]])
            if not len(left):
                break
            pairs = np.column_stack([rows[order[left]], rows[order[left + distance]]])
            different = np.bitwise_count(looks[pairs[:, 0]] ^ looks[pairs[:, 1]]).sum(1)
            found.append(np.sort(pairs[different <= NEAR], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _shapes(dataset: Checked, table: _Table) -> Iterator[Finding]:
    images = table.rows[: table.num_train]
    width, height = images["width"].astype(np.int64), images["height"].astype(np.int64)
    tilings = [dataset.sources[number].tiling for number in table.of[: table.num_train]]
    grids = [tiling.grid(*size) for tiling, *size in zip(tilings, width.tolist(), height.tolist(), strict=True)]
    pixels = [grid.columns * grid.rows * tiling.tile_size**2 for tiling, grid in zip(tilings, grids, strict=True)]
    yield table.finding("upscaled", np.flatnonzero(pixels > UPSCALED * width * height))
    yield table.finding("extreme", np.flatnonzero(np.maximum(width, height) > EXTREME * np.minimum(width, height)))
