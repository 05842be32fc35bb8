"""The toy world is always the same, and its answers are true."""

import hashlib
import random
from itertools import islice

import PIL
import torch
from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.toy import pretrain, stripes
from xtuner_plugins.toy.data import GRIDS, main, scene_of, write_data, write_pairs
from xtuner_plugins.toy.images import TILE, draw
from xtuner_plugins.toy.language import NUMBER_WORDS, ask


def test_answers_are_the_truth_of_the_scene():
    kinds = set()
    for split in GRIDS:
        for scene, rng in (scene_of(split, index) for index in range(50)):
            for question in ask(scene, rng):
                kind = question.text.rstrip("?").split()[-1]
                colors = [shape.color for shape in scene.shapes if shape.kind == kind]
                truths = {
                    "What number": [sign.number for sign in scene.signs],
                    "What colour": colors,
                    "How many": [NUMBER_WORDS[len(scene.shapes)]],
                    "Is there": ["yes" if colors else "no"],
                }
                start = " ".join(question.text.split()[:2])
                assert [question.answer] == truths[start], question
                kinds.add(start)
    assert kinds == truths.keys()


def test_the_toy_world_is_always_the_same(tmp_path, capsys):
    """Scenes, texts of the quick start, of the pairs and of the stripes: figures depend on each draw and its seed."""
    write_data(tmp_path / "a", {"pretrain": 40, "train": 80, "test": 30, "crossing": 10}, workers=1)
    write_pairs(tmp_path / "b", {"pairs": 12, "test": 6}, workers=1)
    stripes.write_data(tmp_path / "c", 30)
    found = hashlib.sha256()
    for folder in "abc":
        for path in sorted((tmp_path / folder).glob("*.json*")):
            found.update(path.read_bytes())
    assert found.hexdigest()[:16] == "9f3cb0e157498e1c"
    main(["--out", str(tmp_path / "d"), "--scale", "0.005", "--pairs"])
    assert capsys.readouterr().out.startswith("drew 21 scenes of pairs, 16 scenes of test for ")
    scenes = [scene_of(split, index, seed)[0] for split in GRIDS for index in range(100) for seed in (0, 1)]
    scenes += [pretrain._crowded(random.Random(seed)) for seed in range(100)]
    assert hashlib.sha256(repr(scenes).encode()).hexdigest()[:16] == "7063894fc0c678d8"
    labels = [label for _, label in islice(pretrain._tiles(random.Random(0)), 100)]
    dialogues = [pretrain._dialogue(random.Random(index), index / 100) for index in range(100)]
    learned = torch.stack(labels).numpy().tobytes() + repr(dialogues).encode()
    assert hashlib.sha256(learned).hexdigest()[:16] == "4f9338bee4afdef0"
    if PIL.__version__.startswith("12."):  # other releases round otherwise
        drawn = (hashlib.sha256(draw(scene).tobytes()).hexdigest() for scene in scenes[::20])
        assert hashlib.sha256("".join(drawn).encode()).hexdigest()[:16] == "32f9499f9535b76d"
    # Both sizes of a sign are cut into the same tiles: nothing but the blur gives the small ones away.
    tiling = DynamicTiling(max_tiles=6, tile_size=TILE)
    for path in (tmp_path / "b/images/test").glob("*_small.jpg"):
        small, large = Image.open(path), Image.open(str(path).replace("_small", ""))
        assert tiling.grid(*small.size) == tiling.grid(*large.size)
        assert (large.width // 6, large.height // 6) == small.size
