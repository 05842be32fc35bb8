"""Packs of samples under two budgets, tokens and tiles, with similar work for every rank.

    pack 0  |  sample 17  | sample 4 | 3 |   at most max_tokens tokens and max_tiles tiles
    pack 1  | sample 9 |     sample 23    |

The samples of an epoch are shuffled and packed window by window (see `bin_packing`), in the way that packs a random
part of them best. The packs depend on seed, sizes and budgets alone. `arrange` then orders them for a number of ranks:
packs with similar work form cells of one pack per rank, and the cells are shuffled. So the ranks of a step
hardly wait for each other, and the order of the steps is random, apart from the longest pack, which comes first.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from ...errors import SettingError
from .bin_packing import BestFit, RandomFill, Redeal, Sizes

BEST_FITS = [BestFit(tile_share, noise) for tile_share in (0.0, 0.5) for noise in (0.0, 0.05, 0.2)]
RANDOM_FILLS = [RandomFill(0), RandomFill(0.3)]  # for samples with the same number of tiles
WORTH_WAITING = 1.002  # a thrifty way, which is slow, is used where others need more than this many times its packs
TRIAL = (2048, 16_384)  # samples on which every way is tried: 1 / 16 of all, within these bounds
REGION = 64  # cells among which packs are sorted by work: few, so that the order of an epoch stays random


@dataclass(frozen=True)
class Packs:
    """The packs of an epoch."""

    order: np.ndarray  # int32 `[samples]`, indices of samples, pack by pack
    ends: np.ndarray  # int64 `[packs]`, where each pack ends in `order`
    tokens: np.ndarray  # int64 `[packs]`
    tiles: np.ndarray  # int64 `[packs]`
    work: np.ndarray  # float64 `[packs]`, operations of the forward pass

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        """Indices of the samples of a pack."""
        return self.order[self.ends[index - 1] if index else 0 : self.ends[index]]

    def take(self, order: np.ndarray) -> "Packs":
        """The packs in another order."""
        num = np.diff(self.ends, prepend=0)
        ends = np.cumsum(num[order], dtype=np.int64)
        shift = np.repeat(self.ends[order] - ends, num[order])
        sums = (self.tokens[order], self.tiles[order], self.work[order])
        return Packs(self.order[np.arange(len(shift)) + shift], ends, *sums)


def pack_samples(
    indices: np.ndarray,
    tokens: np.ndarray,
    tiles: np.ndarray,
    *,
    max_tokens: int,
    max_tiles: int | None = None,
    seed: int = 0,
    work_rates: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> Packs:
    """Pack samples; `arrange` orders the packs for a number of ranks.

    Args:
        indices, tokens, tiles: `[n]`, of the samples.
        max_tokens, max_tiles: budgets of a pack; None means no limit on tiles.
        seed: decides packs and their order, together with sizes and budgets.
        work_rates: of a sample's squared tokens, tokens and tiles in its work.

    Raises:
        SettingError: a sample that fits into no pack.
    """
    limit = np.iinfo(np.int64).max if max_tiles is None else max_tiles
    tokens, tiles = np.asarray(tokens, np.int64), np.asarray(tiles, np.int64)
    if (too_large := (tokens > max_tokens) | (tiles > limit)).any():
        over = int(too_large.argmax())
        problem = f"sample {indices[over]} has {tokens[over]} tokens and {tiles[over]} tiles, a pack at most "
        remedy = "raise the pack's budgets, or lower the dataset's max_length or max_tiles"
        raise SettingError("packing", f"{problem}{max_tokens} and {max_tiles}", remedy)
    if max_tiles is None or (tiles * max_tokens <= max_tiles * tokens).all():  # the tokens run out first
        sizes = Sizes(tokens, np.zeros_like(tiles), max_tokens, 0)
    else:
        sizes = Sizes(tokens, tiles, max_tokens, max_tiles)
    order = np.random.default_rng(seed).permutation(len(tokens))
    flat, nums = _pack(order, sizes, seed) if len(order) else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    ends = np.cumsum(nums, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    work = work_rates[0] * tokens.astype(np.float64) ** 2 + work_rates[1] * tokens + work_rates[2] * tiles
    sums = [np.add.reduceat(column[flat], starts) if len(flat) else flat for column in (tokens, tiles, work)]
    return Packs(np.asarray(indices)[flat].astype(np.int32), ends, *sums)


def _pack(order: np.ndarray, sizes: Sizes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples pack by pack, and how many each pack has, int64, in the way that is best for a trial part of them."""
    alike = bool((sizes.tiles == sizes.tiles[0]).all())
    ways = [*(way for way in BEST_FITS if not way.tile_share), *RANDOM_FILLS] if alike else [*BEST_FITS, Redeal()]
    trial = order[: int(np.clip(len(order) // 16, *TRIAL))]
    found = [_pack_windows(trial, sizes, seed, way) for way in ways]
    thrifty = [bool(getattr(way, "thrift", 0)) for way in ways]
    best = min(range(len(ways)), key=lambda way: len(found[way][1]) * (WORTH_WAITING if thrifty[way] else 1))
    return found[best] if len(trial) == len(order) else _pack_windows(order, sizes, seed, ways[best])


def _pack_windows(
    order: np.ndarray, sizes: Sizes, seed: int, way: BestFit | RandomFill | Redeal
) -> tuple[np.ndarray, np.ndarray]:
    """Pack samples window by window, as `_pack`; each window leaves some to the next."""
    windows = np.array_split(order, max(1, round(len(order) / way.window)))
    members, nums = [], []  # arrays, one per window: lists of millions of numbers take many times their memory
    left: list[int] = []
    for number, window in enumerate(windows):
        found, left = way.pack(left + window.tolist(), sizes, seed + number, last=number == len(windows) - 1)
        nums.append(np.array([len(pack) for pack in found], np.int64))
        members.append(np.fromiter(chain.from_iterable(found), np.int64, int(nums[-1].sum())))
    return np.concatenate(members), np.concatenate(nums)


def arrange(packs: Packs, num_ranks: int, seed: int) -> Packs:
    """The packs of an epoch in the order in which `num_ranks` ranks take them, one per rank and step."""
    rng = np.random.default_rng([seed, num_ranks])
    order = rng.permutation(len(packs))
    num_cells = len(packs) // num_ranks
    num_regions = max(1, round(num_cells / REGION))
    ends = np.array([len(part) for part in np.array_split(np.arange(num_cells), num_regions)]).cumsum() * num_ranks
    regions = np.split(order, ends[:-1])
    order = np.concatenate([region[np.argsort(-packs.work[region], kind="stable")] for region in regions])
    cells = order[: num_cells * num_ranks].reshape(num_cells, num_ranks)
    rest = order[num_cells * num_ranks :]  # the incomplete last step: packs with the least work
    order = np.concatenate([rng.permutation(cells).ravel(), rest])
    heaviest = np.lexsort((packs.tiles[order], packs.tokens[order]))[-1]
    order[[0, heaviest]] = order[[heaviest, 0]]
    return packs.take(order)


def efficiency(packs: Packs, max_tokens: int, num_ranks: int = 1) -> dict[str, float]:
    """Figures of a packing: samples_per_pack; padded, the share of the token budget that stays empty; waiting.

    That is the share of their time in which ranks wait for the one with most work, in steps of neighboring packs.
    """
    steps = len(packs) // num_ranks
    work = packs.work[: steps * num_ranks].reshape(steps, num_ranks)
    return {
        "padded": 1 - float(packs.tokens.sum()) / (len(packs) * max_tokens),
        "samples_per_pack": len(packs.order) / max(len(packs), 1),
        "waiting": 1 - float(work.mean(1).sum() / work.max(1).sum()) if steps else 0.0,
    }
