"""What a careful person wants to know of data before training: each finding counted, with examples by name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..plan.lengths import SHRUNK, TRUNCATED
from .check import FileReport
from .duplicates import FLAT, NEAR, groups, near_pairs
from .facts import REFUSES, REPEATS, joined
from .looking import Checked

MOST_EXAMPLES = 24  # of each finding
MOST_ROWS = 4  # of an example
UPSCALED = 9.0  # pixels of the grid for each of the image
EXTREME = 5.0  # longer side over the shorter one
FAR = 3.0  # quartile distances beyond the upper quartile, of logarithms
FEW = 20  # records of a file; fewer have no outliers

Place = tuple[int, int, int]  # data (0: training, 1: validation), file, row


@dataclass
class Finding:
    """Something that was found.

    Attributes:
        kind: key of `WORDS`.
        count: records, images or answers that it is about.
        total: how many were looked at.
        where: names of files (or of two files) -> count.
        examples: records that belong together.
    """

    kind: str
    count: int
    total: int
    where: Counter = field(default_factory=Counter)
    examples: list[list[Place]] = field(default_factory=list)


WORDS = {  # kind: English title, Chinese title, English remedy, Chinese remedy
    "leaked_records": (
        "validation records that are training records, too",
        "同时也在训练数据中的验证记录",
        "remove them from one of the two: the validation loss rewards memory",
        "从其中一方删去：否则验证损失奖励的是记忆",
    ),
    "leaked_images": (
        "validation records about an image of the training data",
        "使用了训练图像的验证记录",
        "split by images, not by records",
        "按图像而不是按记录划分",
    ),
    "leaked_looks": (
        "validation records about an image that looks like one of the training data",
        "图像与训练图像近乎相同的验证记录",
        "look at the cards: recompressed or scaled copies count as leaks, too",
        "请查看卡片：重新压缩或缩放的副本同样属于泄漏",
    ),
    "equal_records": (
        "records that repeat another: equal text and equal images",
        "文字和图像都与另一条相同的记录",
        "remove the copies, or say with repeat_times what shall come twice",
        "删去副本；有意重复时用 repeat_times",
    ),
    "equal_images": (
        "images with the pixels of another file or data set",
        "像素与另一个文件或数据集中的图像相同",
        "equal images with other questions are fine; whole copies of a data set are not",
        "同图不同问没有问题；整份重复的数据集则不行",
    ),
    "near_images": (
        "images that look like another one",
        "与另一张近乎相同的图像",
        "look at the cards: frames of one film, or copies in another size",
        "请查看卡片：可能是同一视频的帧，或不同尺寸的副本",
    ),
    "mirrored_images": (
        "images that look like the mirror image of another one",
        "与另一张图像的镜像近乎相同的图像",
        "look for left and right in their texts: a mirrored copy swaps them",
        "请检查文字中的左右：镜像副本左右颠倒",
    ),
    "equal_texts": (
        "records with the text of another, about other images",
        "图像不同而文字与另一条完全相同的记录",
        "an answer that fits every image teaches to ignore them",
        "对任何图像都成立的回答会让模型忽略图像",
    ),
    "refusals": (
        "answers that refuse",
        "拒绝回答的答案",
        "keep them only if the model shall refuse",
        "除非希望模型拒绝，否则请删去",
    ),
    "repetitive": (
        "answers that repeat themselves: over half of their 4-word sequences",
        "自我重复的答案：一半以上的四词片段重复出现",
        "often the output of a model that was cut off; remove them",
        "多为被截断的模型输出；请删去",
    ),
    "long_records": (
        "records far longer than others of their file",
        "远长于同文件其他记录的记录",
        "look at a few: pasted documents, or several conversations in one",
        "抽看几条：可能粘贴了整篇文档，或几段对话合成了一条",
    ),
    "upscaled": (
        "images enlarged to more than three times their sides",
        "放大到边长三倍以上的图像",
        "small images cost as many tokens as large ones: lower max_tiles of their file",
        "小图与大图耗费同样多的词元：可为该文件调低 max_tiles",
    ),
    "extreme": (
        "images more than five times as long as wide, or as wide as long",
        "长宽比超过 5 的图像",
        "grids reach an aspect ratio of max_tiles at most; beyond it an image is squeezed",
        "网格的长宽比至多为 max_tiles；超出时图像会被压扁",
    ),
    "shrink_tiles": (
        "records with fewer tiles, to fit max_length",
        "为满足 max_length 而减少图块的记录",
        "raise max_length, or lower max_tiles for all",
        "调高 max_length，或统一调低 max_tiles",
    ),
    "truncate_text": (
        "records with their end cut off, to fit max_length",
        "为满足 max_length 而截去末尾的记录",
        "raise max_length, or leave them out with too_long=['shrink_tiles']",
        "调高 max_length，或用 too_long=['shrink_tiles'] 跳过它们",
    ),
}


def find(
    dataset: Checked, reports: Sequence[FileReport], validation: Sequence[tuple[Checked, Sequence[FileReport]]] = ()
) -> list[Finding]:
    """Everything that was found in training data, in the order of `WORDS`.

    Args:
        validation: datasets that shall hold nothing of the training data, with their reports.
    """
    names = [source.name for source in dataset.sources]
    images, numbers = joined([report.facts.images for report in reports])
    # An image file that several records of a data set name is one image.
    first = _firsts(_mixed(images["name"], numbers))
    distinct, of = images[first], numbers[first]
    found = [*_leaks(reports, names, validation), *_copies(reports, names, distinct, of)]
    found += [*_answers(reports, names), *_outliers(reports, names), *_shapes(dataset, names, distinct, of)]
    found += _fates(reports, names)
    order = list(WORDS)
    return sorted((each for each in found if each.count), key=lambda each: order.index(each.kind))


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Rows whose key hasn't come before, in their order: hashes of names differ from folder to folder."""
    return np.sort(np.unique(keys, return_index=True)[1])


def _mixed(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Hashes of (key, number of the file)."""
    return keys ^ (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _places(rows: np.ndarray, numbers: np.ndarray, data: int = 0) -> list[Place]:
    pairs = dict.fromkeys(zip(numbers[:MOST_ROWS].tolist(), rows[:MOST_ROWS].tolist(), strict=True))
    return [(data, number, row) for number, row in pairs]


def _of_groups(
    kind: str, found: Sequence[np.ndarray], table: np.ndarray, numbers: np.ndarray, names: Sequence[str]
) -> Finding:
    """Rows that repeat the first of their group, counted by the files of both."""
    finding = Finding(kind, sum(len(group) - 1 for group in found), len(table))
    for group in found:
        first, others = numbers[group[0]], np.bincount(numbers[group[1:]], minlength=len(names))
        for number in np.flatnonzero(others):
            both = names[first] if number == first else f"{names[first]} / {names[number]}"
            finding.where[both] += int(others[number])
    finding.examples = [_places(table["row"][group], numbers[group]) for group in found[:MOST_EXAMPLES]]
    return finding


def _copies(reports, names, images, of) -> list[Finding]:
    records, numbers = joined([report.facts.records for report in reports])
    equal = groups(records["whole"])
    first = _firsts(records["whole"])  # so that only other images count as equal texts
    texts = [first[group] for group in groups(records["text"][first])]
    pixels = groups(images["pixels"])
    return [
        _of_groups("equal_records", equal, records, numbers, names),
        _of_groups("equal_images", pixels, images, of, names),
        _near(images, of, names),
        _mirrored(images, of, names),
        _of_groups("equal_texts", texts, records, numbers, names),
    ]


def _near(images: np.ndarray, of: np.ndarray, names: Sequence[str]) -> Finding:
    """Images that aren't equal to, but look like another one."""
    first = _firsts(images["pixels"])
    kept, numbers = images[first], of[first]
    looks, inverse = np.unique(kept[["across", "down"]], return_inverse=True)
    same = [group for group in groups(inverse.reshape(-1)) if _has_structure(kept[group[0]])]
    _, where = np.unique(inverse, return_index=True)
    pairs = where[near_pairs(np.ascontiguousarray(looks["across"]), np.ascontiguousarray(looks["down"]))]
    together = [*same, *pairs.reshape(-1, 2)]
    finding = Finding("near_images", len({int(row) for group in together for row in group[1:]}), len(images))
    for group in together:
        pair = sorted({names[numbers[row]] for row in group})
        finding.where[" / ".join(pair)] += len(group) - 1
    finding.examples = [_places(kept["row"][group], numbers[group]) for group in together[:MOST_EXAMPLES]]
    return finding


def _mirrored(images: np.ndarray, of: np.ndarray, names: Sequence[str]) -> Finding:
    """Images whose mirror image looks like another one, which they don't look like themselves."""
    first = np.sort(np.unique(images[["across", "down"]], return_index=True)[1])
    kept, numbers = images[first], of[first]
    across, down = (np.concatenate([kept[name], kept[f"mirrored_{name}"]]) for name in ("across", "down"))
    found = set()
    for left, right in near_pairs(across, down).tolist():
        one, other = sorted((left % len(kept), right % len(kept)))
        if one == other or (left < len(kept)) == (right < len(kept)):
            continue
        looks = kept[["across", "down"]][[one, other]].tolist()
        if sum((a ^ b).bit_count() for a, b in zip(*looks, strict=True)) > NEAR:
            found.add((one, other))
    pairs = sorted(found)
    finding = Finding("mirrored_images", len({other for _, other in pairs}), len(images))
    for pair in pairs:
        finding.where[" / ".join(sorted({names[numbers[row]] for row in pair}))] += 1
    finding.examples = [_places(kept["row"][list(pair)], numbers[list(pair)]) for pair in pairs[:MOST_EXAMPLES]]
    return finding


def _has_structure(image: np.void) -> bool:
    return int(image["across"]).bit_count() + int(image["down"]).bit_count() >= FLAT


def _leaks(reports, names, validation) -> list[Finding]:
    """Records of validation data whose text and images, image, or look the training data has."""
    kinds = {kind: Finding(kind, 0, 0) for kind in ("leaked_records", "leaked_images", "leaked_looks")}
    records, of_records = joined([report.facts.records for report in reports])
    images, of_images = joined([report.facts.images for report in reports])
    for data, (dataset, held_out) in enumerate(validation, 1):
        own_names = [source.name for source in dataset.sources]
        own, of_own = joined([report.facts.records for report in held_out])
        seen, of_seen = joined([report.facts.images for report in held_out])
        columns = {
            "leaked_records": (_partners(own["whole"], records["whole"]), own, of_own, records, of_records),
            "leaked_images": (_partners(seen["pixels"], images["pixels"]), seen, of_seen, images, of_images),
            "leaked_looks": (_alike(seen, images), seen, of_seen, images, of_images),
        }
        for kind, (partners, table, numbers, other, of_other) in columns.items():
            kinds[kind].total += len(own)
            leaked: dict[tuple[int, int], int] = {}
            for place in np.flatnonzero(partners >= 0):
                leaked.setdefault((int(numbers[place]), int(table["row"][place])), int(partners[place]))
            kinds[kind].count += len(leaked)
            for (number, row), partner in leaked.items():
                kinds[kind].where[f"{own_names[number]} / {names[of_other[partner]]}"] += 1
                if len(kinds[kind].examples) < MOST_EXAMPLES:
                    pair = [(data, number, row), (0, int(of_other[partner]), int(other["row"][partner]))]
                    kinds[kind].examples.append(pair)
    return list(kinds.values())


def _partners(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each key the first row of `others` with the same key, -1 for none."""
    if not len(others):
        return np.full(len(keys), -1)
    known, first = np.unique(others, return_index=True)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, first[place], -1)


def _alike(seen: np.ndarray, images: np.ndarray) -> np.ndarray:
    """For each image a row of `images` that looks like it but has other pixels, -1 for none."""
    found = np.full(len(seen), -1)
    both = np.concatenate([seen, images])
    looks, first, inverse = np.unique(both[["across", "down"]], return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    of_image = np.full(len(looks), -1)  # a training image with each look
    of_image[inverse[len(seen) :]] = np.arange(len(images))
    near = near_pairs(np.ascontiguousarray(looks["across"]), np.ascontiguousarray(looks["down"]))
    partners = of_image.copy()
    for left, right in (*near.tolist(), *near[:, ::-1].tolist()):
        if partners[left] < 0:
            partners[left] = of_image[right]
    for place in range(len(seen)):
        found[place] = partners[inverse[place]] if _has_structure(seen[place]) else -1
    equal = _partners(seen["pixels"], images["pixels"]) >= 0
    found[equal] = -1
    return found


def _answers(reports, names) -> list[Finding]:
    answers, numbers = joined([report.facts.answers for report in reports])
    return [
        _of_rows("refusals", np.flatnonzero(answers["flags"] & REFUSES), answers, numbers, names),
        _of_rows("repetitive", np.flatnonzero(answers["flags"] & REPEATS), answers, numbers, names),
    ]


def _of_rows(kind: str, rows: np.ndarray, table: np.ndarray, numbers: np.ndarray, names: Sequence[str]) -> Finding:
    counts = np.bincount(numbers[rows], minlength=len(names))
    where = Counter({names[number]: int(counts[number]) for number in np.flatnonzero(counts)})
    shown = rows[np.linspace(0, len(rows) - 1, min(MOST_EXAMPLES, len(rows))).astype(int)] if len(rows) else rows
    examples = [_places(table["row"][[row]], numbers[[row]]) for row in shown]
    return Finding(kind, len(rows), len(table), where, examples)


def _outliers(reports, names) -> list[Finding]:
    """Records whose number of tokens (without a model: of words in answers) is far above that of their file."""
    records, numbers = joined([report.facts.records for report in reports])
    lengths = records["tokens"].astype(float)
    if not lengths.any():
        sums = []
        for report in reports:
            table, answers = report.facts.records, report.facts.answers
            words = np.bincount(np.searchsorted(table["row"], answers["row"]), answers["words"], len(table))
            sums.append(words)
        lengths = np.concatenate(sums) if sums else lengths
    logs, far = np.log2(1 + lengths), np.zeros(len(records), bool)
    for number in range(len(names)):
        rows = np.flatnonzero(numbers == number)
        if len(rows) >= FEW:
            low, high = np.percentile(logs[rows], [25, 75])
            far[rows] = logs[rows] > high + FAR * max(high - low, 0.25)
    rows = np.flatnonzero(far)
    return [_of_rows("long_records", rows[np.argsort(-lengths[rows], kind="stable")], records, numbers, names)]


def _shapes(dataset: Checked, names, images, of) -> list[Finding]:
    side = np.array([source.tiling.tile_size for source in dataset.sources])[of] if len(of) else of
    thumbnails = np.array([source.tiling.use_thumbnail for source in dataset.sources])[of] if len(of) else of
    sizes = images["width"].astype(np.int64), images["height"].astype(np.int64)
    grid = images["tiles"] - (thumbnails & (images["tiles"] > 1))
    upscaled = np.flatnonzero(grid * side**2 > UPSCALED * sizes[0] * sizes[1])
    extreme = np.flatnonzero(np.maximum(*sizes) > EXTREME * np.minimum(*sizes))
    return [
        _of_rows("upscaled", upscaled, images, of, names),
        _of_rows("extreme", extreme, images, of, names),
    ]


def _fates(reports, names) -> list[Finding]:
    records, numbers = joined([report.facts.records for report in reports])
    return [
        _of_rows(kind, np.flatnonzero(records["fate"] == fate), records, numbers, names)
        for kind, fate in (("shrink_tiles", SHRUNK), ("truncate_text", TRUNCATED))
    ]
