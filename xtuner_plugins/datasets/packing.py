"""Samples become packs under two budgets at once, tokens and tiles, with alike amounts of work for every rank.

    pack 0  |  sample 17  | sample 4 | 3 |   at most max_tokens tokens and max_tiles tiles
    pack 1  | sample 9 |     sample 23    |

The samples of an epoch are shuffled and packed window by window: samples are taken at random until one is found that
closes the pack almost exactly; of a few tries the fullest counts. Random picks keep what is left of a window alike to
the whole, where taking the longest first would leave what fits nowhere. Where packs stay open all the same, because
few samples are short enough to close them (two pictures of 13 tiles leave 1,100 tokens of 8192), short samples are
spared: of two tries the one with less of them counts. Packs of alike work then stand next to each other, in cells, and
the cells are shuffled: ranks that take neighbouring packs wait little for each other.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from random import Random

import numpy as np

from .errors import SettingError

WINDOW = 4096  # samples packed together; a quarter of them stays for the next window
TRIES = 8  # packs tried for each that is kept
THRIFTY_TRIES = 16  # the same where short samples are spared
SHORT = 6  # a sample is short below 1 / SHORT of a pack
THRIFT = 0.3  # what a short sample's token costs, in tokens of a pack that stay empty
OPEN = 0.01  # short samples are spared while this share of the packs' tokens stays empty
CLOSE = 400  # a pack is closed when less than 1 / CLOSE of it stays empty
RECENT = 2000  # packs, about, that count as the last ones
MOST = 1 << 60  # more than any sample's number
CELL = 8  # packs of alike work that stand next to each other
REGION = 64  # cells among which packs are sorted by work; far below an epoch, so that its order stays random


@dataclass(frozen=True)
class Packs:
    """The packs of an epoch.

    Attributes:
        order: int32 `[samples]`, indices of samples, pack by pack.
        ends: int64 `[packs]`, where each pack ends in `order`.
        tokens, tiles: int64 `[packs]`.
    """

    order: np.ndarray
    ends: np.ndarray
    tokens: np.ndarray
    tiles: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> np.ndarray:
        """Indices of the samples of a pack."""
        return self.order[self.ends[number - 1] if number else 0 : self.ends[number]]


def pack_samples(
    indices: np.ndarray,
    tokens: np.ndarray,
    tiles: np.ndarray,
    *,
    max_tokens: int,
    max_tiles: int | None = None,
    seed: int = 0,
) -> Packs:
    """Pack samples.

    Args:
        indices: `[n]`, the samples' indices.
        tokens, tiles: `[n]`, of each of them.
        max_tokens, max_tiles: budgets of a pack; None means no limit on tiles.
        seed: decides the order, together with nothing else.

    Raises:
        SettingError: a sample that fits into no pack.
    """
    limit = np.iinfo(np.int64).max if max_tiles is None else max_tiles
    tokens, tiles = np.asarray(tokens, np.int64), np.asarray(tiles, np.int64)
    over = np.flatnonzero((tokens > max_tokens) | (tiles > limit))
    if len(over):
        place = over[0]
        raise SettingError(
            "packing",
            f"sample {indices[place]} has {tokens[place]} tokens and {tiles[place]} tiles, "
            f"a pack at most {max_tokens} and {max_tiles}",
            "raise the pack's budgets, or lower the dataset's max_length or max_tiles",
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(indices))
    random = Random(seed)
    members: list[list[int]] = []
    waiting: list[int] = []
    empty = 2 * OPEN
    for first in range(0, len(shuffled), WINDOW):
        waiting += shuffled[first : first + WINDOW].tolist()
        keep = 0 if first + WINDOW >= len(shuffled) else WINDOW // 4
        packs, waiting, empty = _pack_window(waiting, tokens, tiles, max_tokens, limit, random, keep, empty)
        members += packs
    return _arrange(members, np.asarray(indices), tokens, tiles, rng)


def _pack_window(
    waiting: list[int],
    tokens: np.ndarray,
    tiles: np.ndarray,
    max_tokens: int,
    max_tiles: int,
    random: Random,
    keep: int,
    empty: float,
) -> tuple[list[list[int]], list[int], float]:
    """Pack waiting samples until only `keep` are left.

    Args:
        empty: share of the last packs' tokens that stayed empty.

    Returns:
        the packs, what is left, and `empty` anew.
    """
    shelf = sorted(zip(tokens[waiting].tolist(), waiting, tiles[waiting].tolist(), strict=True))
    packs = []
    full, short = max_tokens - max_tokens // CLOSE, max_tokens // SHORT
    while len(shelf) > keep:
        best, best_used, best_score = [], 0, -math.inf
        thrift = THRIFT if empty > OPEN else 0
        for _ in range(THRIFTY_TRIES if thrift else TRIES):
            chosen, used = _try_pack(shelf, max_tokens, max_tiles, random)
            spent = thrift and sum(shelf[place][0] for place in chosen if shelf[place][0] < short)
            if used - thrift * spent > best_score:
                best, best_used, best_score = chosen, used, used - thrift * spent
            if used >= full and not spent:
                break
        empty += (1 - best_used / max_tokens - empty) / RECENT
        packs.append([shelf[place][1] for place in best])
        for place in sorted(best, reverse=True):
            del shelf[place]
    return packs, [sample for _, sample, _ in shelf], empty


def _try_pack(
    shelf: list[tuple[int, int, int]], max_tokens: int, max_tiles: int, random: Random
) -> tuple[list[int], int]:
    """Take samples at random until one closes the pack; returns their places on the shelf and their tokens."""
    chosen: list[int] = []
    room, tile_room = max_tokens, max_tiles
    while True:
        last = bisect_right(shelf, (room, MOST, 0))  # what stands before fits
        place = last - 1
        while place >= 0 and (place in chosen or shelf[place][2] > tile_room):
            place -= 1
        if place < 0:
            return chosen, max_tokens - room
        if room - shelf[place][0] > max_tokens // CLOSE:  # doesn't close the pack: a random one instead, if any fits
            other = int(random.random() * last)
            if other not in chosen and shelf[other][2] <= tile_room:
                place = other
        chosen.append(place)
        room -= shelf[place][0]
        tile_room -= shelf[place][2]


def _arrange(
    members: list[list[int]], indices: np.ndarray, tokens: np.ndarray, tiles: np.ndarray, rng: np.random.Generator
) -> Packs:
    """Put packs of alike work next to each other, and the cells of them in random order."""
    work = np.array([tiles[pack].sum() for pack in members], np.int64)
    order = rng.permutation(len(members))
    cells = []
    for first in range(0, len(order), CELL * REGION):
        region = order[first : first + CELL * REGION]
        region = region[np.argsort(work[region], kind="stable")]
        cells += [region[start : start + CELL] for start in range(0, len(region), CELL)]
    odd = [cell for cell in cells if len(cell) < CELL]  # incomplete cells last, so that the others stay aligned
    cells = [cell for cell in cells if len(cell) == CELL]
    order = np.concatenate([cells[place] for place in rng.permutation(len(cells))] + odd) if members else order
    flat = np.concatenate([members[place] for place in order]) if members else np.zeros(0, np.int64)
    ends = np.cumsum([len(members[place]) for place in order])
    sums = [
        np.add.reduceat(column[flat], np.concatenate([[0], ends[:-1]])) if len(flat) else np.zeros(0, np.int64)
        for column in (tokens, tiles)
    ]
    return Packs(indices[flat].astype(np.int32), ends.astype(np.int64), *sums)


def efficiency(packs: Packs, max_tokens: int, num_ranks: int = 1) -> dict[str, float]:
    """What the packing achieves.

    Returns:
        padded: share of a pack's tokens that stay empty; samples_per_pack; tile_imbalance: the most tiles of a rank
        over the mean, in steps of `num_ranks` neighbouring packs, weighted by tiles.
    """
    steps = len(packs) // num_ranks
    work = packs.tiles[: steps * num_ranks].reshape(steps, num_ranks)
    imbalance = work.max(1).sum() / max(work.mean(1).sum(), 1e-9) if steps and work.any() else 1.0
    return {
        "padded": 1 - float(packs.tokens.sum()) / (len(packs) * max_tokens),
        "samples_per_pack": len(packs.order) / max(len(packs), 1),
        "tile_imbalance": float(imbalance),
    }
