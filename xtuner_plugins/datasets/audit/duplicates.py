"""Equal and nearly equal rows of long columns of hashes, without comparing every row with every other."""

from collections.abc import Iterator

import numpy as np

BITS = 128  # of a look: 64 across, 64 down
NEAR = 5  # bits in which two looks may differ
BANDS = NEAR + 1  # two such looks are equal in at least one of so many parts
WINDOW = 48  # neighbors that a row is compared with where more share a part
FLAT = 10  # looks with fewer bits set are of images without structure, and all alike


def groups(keys: np.ndarray) -> list[np.ndarray]:
    """Rows with equal keys, for keys that occur more than once; the largest groups first."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(keys)]])
    several = np.flatnonzero(ends - starts > 1)
    several = several[np.argsort(starts[several] - ends[several], kind="stable")]
    return [order[starts[place] : ends[place]] for place in several]


def near_pairs(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Pairs of rows whose looks differ in at most `NEAR` bits: int64 `[n, 2]`, each pair once, i < j.

    Where more than `WINDOW` rows share a part, each is compared with the next of them in the order of their looks.

    Args:
        across, down: uint64 `[r]`, distinct looks.
    """
    if len(across) < 2:
        return np.zeros((0, 2), np.int64)
    looks = np.column_stack([across, down])
    bits = np.unpackbits(looks.view(np.uint8), axis=1)
    rows = np.flatnonzero(bits.sum(1) >= FLAT)
    found = []
    for part in np.array_split(np.arange(BITS), BANDS):
        keys = np.zeros(len(rows), np.uint64)
        for bit in part:
            keys = (keys << np.uint64(1)) | bits[rows, bit].astype(np.uint64)
        order = np.lexsort((down[rows], across[rows], keys))
        for left, right in _neighbors(keys[order]):
            pairs = np.column_stack([rows[order[left]], rows[order[right]]])
            different = np.bitwise_count(looks[pairs[:, 0]] ^ looks[pairs[:, 1]]).sum(1)
            found.append(np.sort(pairs[different <= NEAR], axis=1))
    return np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)


def _neighbors(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in a sorted column, paired with others of the same key up to `WINDOW` places on."""
    for distance in range(1, WINDOW + 1):
        left = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(left):
            return
        yield left, left + distance
