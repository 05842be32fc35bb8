"""Three ways to put the samples of a window into packs with two budgets, tokens and tiles.

`BestFit` takes samples in order of decreasing size, with noise, and puts each into the open pack that it fits best. It
is better where the tile budget binds or large samples leave gaps that few samples can fill.

`RandomFill` fills one pack after another with random samples until one or two are found that close it almost exactly.
It is better where tokens alone are scarce: the rest of the window stays representative of the whole.

`Redeal` cuts a random row of samples into packs, keeps the full ones and deals the others again. It is better where
tiles run out first: a few small numbers often add up exactly.

All leave the samples of a window that found no good place to the next window.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """Tokens and tiles of every sample, and the budgets of a pack."""

    tokens: np.ndarray  # int64 `[n]`
    tiles: np.ndarray  # int64 `[n]`, 0 where there is no limit on them
    max_tokens: int
    max_tiles: int

    def weights(self) -> tuple[float, float]:
        """How much a token and a tile of a pack are worth; more for the scarcer budget."""
        tokens = float(self.tokens.sum()) / self.max_tokens
        tiles = float(self.tiles.sum()) / max(self.max_tiles, 1)
        return tokens / (tokens + tiles) / self.max_tokens, tiles / (tokens + tiles) / max(self.max_tiles, 1)


@dataclass(frozen=True)
class BestFit:
    """Best-fit decreasing under two budgets, windows of 32,768 samples."""

    tile_share: float  # weight of the tiles in a sample's size, 0 to 1; tokens have the rest
    noise: float  # deviation of the logarithm of a random factor on each size before sorting
    window = 32_768
    returned = 0.1  # share of a window's packs, the emptiest, whose samples wait for the next window

    def pack(self, samples: Sequence[int], sizes: Sizes, seed: int, last: bool) -> tuple[list[list[int]], list[int]]:
        """The packs of a window's samples (indices into `sizes`), and the samples left for the next one.

        Args:
            seed: decides the noise, and the order of equal samples.
            last: whether this is the last window, so that nothing may be left.
        """
        rng, share = np.random.default_rng(seed), self.tile_share if sizes.max_tiles else 0
        samples = rng.permutation(np.asarray(samples, np.int64))
        tokens, tiles = sizes.tokens[samples], sizes.tiles[samples]
        size = (1 - share) * tokens / sizes.max_tokens + share * tiles / max(sizes.max_tiles, 1)
        size *= np.exp(self.noise * rng.standard_normal(len(samples)))
        order = np.argsort(-size, kind="stable")
        packs = _best_fit(samples[order].tolist(), tokens[order].tolist(), tiles[order].tolist(), sizes)
        if last:
            return [members for members, _ in packs], []
        packs.sort(key=lambda pack: pack[1])
        kept = len(packs) - int(self.returned * len(packs))
        left = [sample for members, _ in packs[kept:] for sample in members]
        return [members for members, _ in packs[:kept]], left


def _best_fit(samples: list[int], tokens: list[int], tiles: list[int], sizes: Sizes) -> list[tuple[list[int], float]]:
    """Samples put into packs in the given order: each pack, and how much of it stays empty by `Sizes.weights`.

    Open packs are in `free[tile room][token room]`; bit r of the integer `rooms[tile room]` says that there is one with
    room for r tokens, so the best fit is the lowest bit from the sample's tokens on.
    """
    per_token, per_tile = sizes.weights()
    free: list[dict[int, list[list[int]]]] = [{} for _ in range(sizes.max_tiles + 1)]
    rooms = [0] * (sizes.max_tiles + 1)
    in_use: list[int] = []  # tile rooms with open packs, ascending
    for sample, num_tokens, num_tiles in zip(samples, tokens, tiles, strict=True):
        best, tile_room, token_room = float("inf"), -1, 0
        for place in in_use[bisect_left(in_use, num_tiles) :]:
            above = rooms[place] >> num_tokens
            if above:
                rest = (above & -above).bit_length() - 1
                waste = per_token * rest + per_tile * (place - num_tiles)
                if waste < best:
                    best, tile_room, token_room = waste, place, rest + num_tokens
        if tile_room < 0:
            pack, tile_room, token_room = [], sizes.max_tiles, sizes.max_tokens
        else:
            same = free[tile_room][token_room]
            pack = same.pop()
            if not same:
                del free[tile_room][token_room]
                rooms[tile_room] ^= 1 << token_room
                if not rooms[tile_room]:
                    in_use.remove(tile_room)
        pack.append(sample)
        tile_room, token_room = tile_room - num_tiles, token_room - num_tokens
        if not rooms[tile_room]:
            insort(in_use, tile_room)
        rooms[tile_room] |= 1 << token_room
        free[tile_room].setdefault(token_room, []).append(pack)
    return [
        (pack, per_token * token_room + per_tile * tile_room)
        for tile_room, by_room in enumerate(free)
        for token_room, packs in by_room.items()
        for pack in packs
    ]


@dataclass(frozen=True)
class RandomFill:
    """Random samples until one or two close the pack; the best of a few tries is kept. Windows of 4096 samples.

    For samples with the same number of tiles each, so that the tile budget limits the number of samples in a pack.
    """

    # What a token of a short sample costs, in empty tokens of a pack: where few samples are short enough to close a
    # pack, it is better to save them.
    thrift: float
    window = 4096
    kept = 1024  # samples that wait for the next window
    tail = 128  # samples that `BestFit` packs at the end of the last one
    tries = 8  # packs tried for each one kept
    thrifty_tries = 12
    partners = 3  # random samples tried for one whose best partner closes the pack
    close = 800  # a pack is closed when less than 1 / close of its tokens stay empty
    short = 6  # a sample is short below 1 / short of a pack's tokens

    def pack(self, samples: Sequence[int], sizes: Sizes, seed: int, last: bool) -> tuple[list[list[int]], list[int]]:
        """As `BestFit.pack`."""
        random = Random(seed).random
        samples = np.asarray(samples, np.int64)
        shelf = sorted(zip(sizes.tokens[samples].tolist(), samples.tolist(), strict=True))
        tiles = int(sizes.tiles[samples[0]]) if len(samples) else 0
        most = sizes.max_tiles // tiles if tiles else len(samples)
        full, short = sizes.max_tokens - sizes.max_tokens // self.close, sizes.max_tokens // self.short
        packs = []
        while len(shelf) > (self.tail if last else self.kept):
            best, best_score = [], -float("inf")
            for _ in range(self.thrifty_tries if self.thrift else self.tries):
                chosen, used = self._try_pack(shelf, sizes.max_tokens, most, random)
                spent = self.thrift and sum(shelf[index][0] for index in chosen if shelf[index][0] < short)
                if used - self.thrift * spent > best_score:
                    best, best_score = chosen, used - self.thrift * spent
                if used >= full and not spent:
                    break
            packs.append([shelf[index][1] for index in best])
            for index in sorted(best, reverse=True):
                del shelf[index]
        left = [sample for _, sample in shelf]
        if last:
            return packs + BestFit(0, 0).pack(left, sizes, seed, last=True)[0], []
        return packs, left

    def _try_pack(self, shelf: list, max_tokens: int, most: int, random: Callable[[], float]) -> tuple[list[int], int]:
        """One random pack of at most `most` samples: their indices on the shelf, and their tokens."""
        chosen: list[int] = []
        room, tolerance, longest = max_tokens, max_tokens // self.close, shelf[-1][0]
        while len(chosen) < most:
            end = bisect_left(shelf, (room + 1,))  # what lies before fits
            index = end - 1
            while index in chosen:
                index -= 1
            if index < 0:
                break
            if room - shelf[index][0] > tolerance:  # doesn't close the pack: a random one instead
                for _ in range(self.partners if room <= 2 * longest else 1):
                    other = int(random() * end)
                    if other in chosen:
                        continue
                    index, rest = other, room - shelf[other][0]
                    partner = bisect_left(shelf, (rest + 1,)) - 1
                    if partner >= 0 and rest - shelf[partner][0] <= tolerance and partner not in (other, *chosen):
                        break
            chosen.append(index)
            room -= shelf[index][0]
        return chosen, max_tokens - room


@dataclass(frozen=True)
class Redeal:
    """Random packs of which the full ones are kept, the others dealt again (Yao et al., OmniBal, arXiv 2407.20761).

    A pack is full that has all its tiles, or less than 1 / `close` of its tokens empty.
    """

    close = 800
    window = 32_768
    rounds = 100

    def pack(self, samples: Sequence[int], sizes: Sizes, seed: int, last: bool) -> tuple[list[list[int]], list[int]]:
        """As `BestFit.pack`."""
        rng, left, packs = np.random.default_rng(seed), np.asarray(samples, np.int64), []
        full = sizes.max_tokens - sizes.max_tokens // self.close
        for _ in range(self.rounds):
            left = rng.permutation(left)
            pack, used, shown, rest = [], 0, 0, []
            for sample, tokens, tiles in zip(
                left.tolist(), sizes.tokens[left].tolist(), sizes.tiles[left].tolist(), strict=True
            ):
                if used + tokens > sizes.max_tokens or shown + tiles > sizes.max_tiles:
                    packs.append(pack) if used >= full or shown == sizes.max_tiles else rest.extend(pack)
                    pack, used, shown = [], 0, 0
                pack.append(sample)
                used, shown = used + tokens, shown + tiles
            left = np.array(rest + pack, np.int64)
        if last:
            return packs + BestFit(0.5, 0).pack(left, sizes, seed, last=True)[0], []
        return packs, left.tolist()
