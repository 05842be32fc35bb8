import numpy as np

from xtuner_plugins.datasets.audit.duplicates import NEAR, groups, near_pairs


def flipped(look, bits):
    for bit in bits:
        look[bit // 64] ^= np.uint64(1 << (bit % 64))
    return look


def test_groups():
    found = groups(np.array([5, 3, 5, 9, 3, 5], np.uint64))
    assert [group.tolist() for group in found] == [[0, 2, 5], [1, 4]]
    assert groups(np.zeros(0, np.uint64)) == []


def test_all_near_pairs_and_no_others():
    """Against a comparison of every look with every other."""
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 1 << 63, (300, 2), np.uint64)
    for row in range(0, 120, 2):  # neighbors that differ in 0 to 9 bits
        looks[row + 1] = flipped(looks[row].copy(), rng.choice(128, row // 12, replace=False))
    looks = np.unique(looks, axis=0)
    different = np.bitwise_count(looks[:, None] ^ looks[None]).sum(2)
    expected = np.argwhere(np.triu(different <= NEAR, 1))
    found = near_pairs(looks[:, 0], looks[:, 1])
    assert len(expected) > 20 and found.tolist() == expected.tolist()


def test_images_without_structure_are_not_compared():
    looks = np.array([[0, 0], [0, 1], [1, 0]], np.uint64)
    assert len(near_pairs(looks[:, 0], looks[:, 1])) == 0 and len(near_pairs(looks[:1, 0], looks[:1, 1])) == 0


def test_many_alike_stay_fast():
    rng = np.random.default_rng(1)
    looks = rng.integers(0, 1 << 63, (1, 2), np.uint64).repeat(20_000, 0)
    looks[:, 0] ^= rng.integers(0, 1 << 30, 20_000, np.uint64)  # 98 of 128 bits are equal
    assert near_pairs(looks[:, 0], looks[:, 1]).shape[1] == 2
