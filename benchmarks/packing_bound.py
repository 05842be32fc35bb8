"""How full packs of a mixture like LLaVA-665k can be at most: a bound that no packing beats.

    python benchmarks/packing_bound.py [--tiles 12] [--tokens 8192] [--grid 16]

Packs are patterns, so many samples of each length; the fewest packs that hold all samples are at least what the linear
program over all patterns says (Gilmore and Gomory, Operations Research 9(6), 1961; a knapsack generates the columns).
Lengths are rounded down to the grid, which can only make packing easier, and Farley's bound is taken, which holds
before the program has converged: so what is printed holds whatever happens.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from llava_like import like_llava_665k
from scipy.optimize import linprog
from scipy.sparse import csc_matrix


def fewest_packs(sizes: np.ndarray, counts: np.ndarray, capacity: int, rounds: int = 1500) -> float:
    """A lower bound on the packs for `counts[i]` samples of `sizes[i]`."""
    patterns = list(np.diag(capacity // sizes))
    bound = float(sizes @ counts / capacity)
    for _ in range(rounds):
        found = linprog(np.ones(len(patterns)), A_ub=-csc_matrix(np.array(patterns).T), b_ub=-counts, method="highs")
        values = -found.ineqlin.marginals  # what a sample of each size is worth
        worth, last = np.zeros(capacity + 1), np.full(capacity + 1, -1)
        for room in range(1, capacity + 1):
            worth[room] = worth[room - 1]
            fits = np.flatnonzero(sizes <= room)
            gains = worth[room - sizes[fits]] + values[fits]
            if len(fits) and gains.max() > worth[room] + 1e-12:
                worth[room], last[room] = gains.max(), fits[gains.argmax()]
        bound = max(bound, found.fun / max(worth[capacity], 1.0))
        if worth[capacity] < 1 + 1e-4:
            break
        for start in (capacity, capacity - 1, capacity - 3, capacity - 7):
            pattern, room = np.zeros(len(sizes), np.int64), start
            while room > 0:
                if last[room] < 0:
                    room -= 1
                else:
                    pattern[last[room]] += 1
                    room -= sizes[last[room]]
            patterns.append(pattern)
    return bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--grid", type=int, default=16, help="smaller is tighter and slower (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=100_000)
    args = parser.parse_args()
    tokens, _ = like_llava_665k(args.samples, args.tiles)
    sizes, counts = np.unique(tokens // args.grid, return_counts=True)
    packs = math.ceil(fewest_packs(sizes, counts, args.tokens // args.grid))
    print(
        f"{args.tiles} tiles in packs of {args.tokens}: at least {packs} packs for {args.samples} samples, so at least "
        f"{max(0.0, 1 - tokens.sum() / (packs * args.tokens)):.2%} of their tokens stay empty"
    )


if __name__ == "__main__":
    main()
