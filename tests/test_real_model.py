"""Drawings and questions of `make realmodel`; what it measures stands in docs/measurements.md."""

import json

import numpy as np
from PIL import Image

from benchmarks.real_model import FILES, KINDS, things, write_data


def test_no_image_of_training_shows_the_other_style_or_a_thing_that_is_new(tmp_path, monkeypatch):
    """Each drawing is one colour, which says of which style and thing it is."""
    rows = []
    for number, kind in enumerate(kind for kind in KINDS for _ in range(8)):
        name = f"{number:04x}.png"
        rows.append({"unified": f"{number:04X}-FE0F", "image": name, "subcategory": KINDS[kind][0], "name": "X"})
        for blue, place in (
            (0, f"fluent/package/assets/{number:04x}.webp"),
            (100, f"google/package/img/google/64/{name}"),
            (200, f"twitter/package/img/twitter/64/{name}"),
        ):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (8, 8), (number, 200, blue, 255)).save(tmp_path / place, lossless=True)
    (tmp_path / "twitter/package/emoji.json").write_text(json.dumps(rows))
    pools = things(tmp_path)
    counts = {held: {kind: len(found) for kind, found in pool.items()} for held, pool in pools.items()}
    assert counts == {True: dict.fromkeys(KINDS, 2), False: dict.fromkeys(KINDS, 6)}
    monkeypatch.setattr("benchmarks.real_model.TEXTS", 10)
    write_data(tmp_path, tmp_path / "data", number=40, asked=20, seed=0, grid=1)

    def shown(name: str) -> set[tuple[int, int]]:
        """Thing and blue of what the images of a file show: the commonest pixel value with this green."""
        found = set()
        for line in (tmp_path / f"data/{name}.jsonl").read_text().splitlines():
            pixels = np.array(Image.open(tmp_path / "data/images" / json.loads(line)["image"])).reshape(-1, 3)
            colours, counts = np.unique(pixels[pixels[:, 1] == 200], axis=0, return_counts=True)
            red, _, blue = colours[counts.argmax()].tolist()
            found.add((red, blue))
        return found

    for name in ("train", *FILES):
        assert {blue for _, blue in shown(name)} == ({0, 100} if name == "train" else {200}), name
        assert {thing % 8 % 4 == 0 for thing, _ in shown(name)} == {name.endswith("new")}, name
