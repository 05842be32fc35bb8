"""What planning an epoch costs and how good its packs are, beside best-fit decreasing, for seven mixtures.

    OMP_NUM_THREADS=1 python benchmarks/bench_plan.py [captions multi_image ...] [--samples 200000]

Budgets are those of `configs/finetune_packed.py`, both at once; `--no-tile-budget` takes tokens alone. Empty is the
share of the packs' tokens that stays empty. Best-fit decreasing (Johnson et al., SIAM Journal on Computing 3(4), 1974)
sees all samples at once and takes the best of three orders: by tokens, by the larger share of a budget, by the sum of
both shares; a sample goes into the pack that it leaves the fewest tokens in. "At least" is what no packing beats:
the fewest packs that hold all tokens and all tiles. Seconds are the processor's. Tile imbalance is the most tiles of a
rank over the mean, per step.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from llava_like import like_llava_665k

from xtuner_plugins.datasets.plan.packing import arrange, efficiency, pack_samples

MAX_TOKENS, MAX_TILES, MAX_LENGTH = 8192, 26, 4096  # of configs/finetune_packed.py
TILE_TOKENS = 256


def text(rng: np.random.Generator, num: int, median: float, spread: float, low: int, high: int) -> np.ndarray:
    """Lengths of texts in tokens."""
    return np.clip(rng.lognormal(np.log(median), spread, num), low, high).astype(np.int64)


def captions(num: int, tiles: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Short captions, every image with as many tiles, as LLaVA-Pretrain's 558,000."""
    rng = np.random.default_rng(1)
    return text(rng, num, 62, 0.35, 30, 400) + TILE_TOKENS * tiles + 2, np.full(num, tiles)


def multi_image(num: int) -> tuple[np.ndarray, np.ndarray]:
    """One to eight images that share 12 tiles, shrunk where they are too long."""
    rng = np.random.default_rng(3)
    images = rng.choice([1, 2, 3, 4, 5, 6, 8], num, p=[0.2, 0.3, 0.2, 0.12, 0.08, 0.06, 0.04])
    tiles = np.zeros(num, np.int64)
    for image in range(8):
        grid = np.minimum(rng.choice([1, 2, 4, 6, 9, 12], num, p=[0.1, 0.15, 0.25, 0.25, 0.15, 0.1]), 12 // images)
        tiles += np.where(images > image, grid + (grid > 1), 0)
    tokens = text(rng, num, 160, 0.7, 40, 2500) + 2 * images
    tiles = np.clip((MAX_LENGTH - tokens) // TILE_TOKENS, images, np.maximum(tiles, images))
    return np.minimum(tokens + TILE_TOKENS * tiles, MAX_LENGTH), tiles


def text_only(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Conversations without images."""
    return text(np.random.default_rng(2), num, 600, 0.9, 20, MAX_LENGTH), np.zeros(num, np.int64)


def ocr_heavy(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Mostly pages with all tiles and long texts."""
    rng = np.random.default_rng(4)
    kind = rng.random(num)
    tiles = np.where(kind < 0.92, rng.choice([3, 5, 7], num), 0)
    tiles = np.where(kind < 0.82, rng.choice([13, 13, 13, 11, 10], num), tiles)
    words = np.where(tiles > 7, text(rng, num, 420, 0.5, 60, 766), text(rng, num, 500, 0.9, 30, 2000))
    return np.minimum(words + TILE_TOKENS * tiles + 2 * (tiles > 0), MAX_LENGTH), tiles


MIXTURES = {
    "captions": captions,
    "captions_7_tiles": lambda num: captions(num, 7),
    "llava_6_tiles": lambda num: like_llava_665k(num, 6),
    "llava_12_tiles": lambda num: like_llava_665k(num, 12),
    "multi_image": multi_image,
    "text_only": text_only,
    "ocr_heavy": ocr_heavy,
}


def best_fit_decreasing(tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> int:
    """Packs that the textbook's way needs, the best of three orders."""
    shares = tokens / max_tokens, tiles / max(max_tiles, 1)
    return min(
        _best_fit(np.argsort(-size, kind="stable"), tokens, tiles, max_tokens, max_tiles)
        for size in (shares[0], np.maximum(*shares), shares[0] + shares[1])
    )


def _best_fit(order: np.ndarray, tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> int:
    """Open packs are counted by what is left of both budgets; a bit of `rooms[tiles]` says which tokens are."""
    rooms, open_packs, packs = [0] * (max_tiles + 1), {}, 0
    for num_tokens, num_tiles in zip(tokens[order].tolist(), tiles[order].tolist(), strict=True):
        fits = [
            (((above & -above).bit_length() - 1), tile_room)
            for tile_room in range(num_tiles, max_tiles + 1)
            if (above := rooms[tile_room] >> num_tokens)
        ]
        if fits:
            rest, tile_room = min(fits)
            place = (tile_room, rest + num_tokens)
            open_packs[place] -= 1
            if not open_packs[place]:
                rooms[tile_room] ^= 1 << place[1]
        else:
            packs, rest, tile_room = packs + 1, max_tokens - num_tokens, max_tiles
        place = (tile_room - num_tiles, rest)
        open_packs[place] = open_packs.get(place, 0) + 1
        rooms[place[0]] |= 1 << rest
    return packs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(MIXTURES)} (default: all)")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--no-tile-budget", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - set(MIXTURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    max_tiles = None if args.no_tile_budget else MAX_TILES
    print(f"{args.samples:,} samples, packs of {args.tokens} tokens, {max_tiles or 'any number of'} tiles")
    print("mixture             empty  best-fit decr.  at least   us a sample   imbalance over 8, 64, 512 ranks")
    for name in args.names or MIXTURES:
        tokens, tiles = MIXTURES[name](args.samples)
        started = time.process_time()
        packs = pack_samples(np.arange(len(tokens)), tokens, tiles, max_tokens=args.tokens, max_tiles=max_tiles)
        seconds = time.process_time() - started
        rivals = best_fit_decreasing(tokens, tiles if max_tiles else 0 * tiles, args.tokens, max_tiles or 0)
        fewest = max(tokens.sum() / args.tokens, tiles.sum() / max_tiles if max_tiles else 0)
        imbalance = [
            efficiency(arrange(packs, ranks, 0), args.tokens, ranks)["tile_imbalance"] for ranks in (8, 64, 512)
        ]
        empty = [1 - tokens.sum() / (number * args.tokens) for number in (len(packs), rivals, fewest)]
        print(
            f"{name:<18} {empty[0]:>6.2%} {empty[1]:>14.2%} {empty[2]:>10.2%} {1e6 * seconds / len(tokens):>12.1f}    "
            + "  ".join(f"{value:.3f}" for value in imbalance),
            flush=True,
        )


if __name__ == "__main__":
    main()
