"""Both sizes of a sign are cut into the same tiles: nothing but the blur gives the small ones away."""

from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.toy.images import TILE
from xtuner_plugins.toy.preference_data import SHRUNK, write_pairs


def test_both_sizes_are_cut_into_the_same_tiles(tmp_path):
    write_pairs(tmp_path, {"pairs": 0, "test": 6}, workers=1)
    tiling = DynamicTiling(max_tiles=6, tile_size=TILE)
    for path in sorted((tmp_path / "images/test").glob("*_small.jpg")):
        small, large = Image.open(path), Image.open(str(path).replace("_small", ""))
        assert tiling.grid(*small.size) == tiling.grid(*large.size)
        assert abs(large.width / SHRUNK - small.width) < 1 > abs(large.height / SHRUNK - small.height)
