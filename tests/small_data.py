"""A few records of unequal size, with and without an image: the least that a training run can be checked on."""

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ANSWERS = [
    "Yes.",
    "It shows a red square and a blue circle.",
    "42",
    "No, there are three of them in the image.",
]


def write_dataset(
    folder: Path, num_samples: int = 16, text_only: Callable[[int], bool] = lambda index: index % 4 == 3
) -> tuple[Path, Path]:
    """Samples of unequal tile counts and answer lengths; those that ``text_only`` names by their index have no image.

    Returns:
        The annotation file and the image folder, both in ``folder``, where ``pairs.jsonl`` holds the same as pairs.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    sizes = [(336, 112), (112, 112), (224, 224), (112, 336)]
    records, pairs = [], []
    for index in range(num_samples):
        human = "What do you see?"
        record = {"id": index}
        if not text_only(index):
            name = f"{index}.png"
            Image.new("RGB", sizes[index % 4], ((index * 37) % 256, (index * 91) % 256, 128)).save(images / name)
            record["image"] = name
            human = "<image>\n" + human
        turns = [{"from": "human", "value": human}, {"from": "gpt", "value": ANSWERS[(index * 7) % 4]}]
        records.append({**record, "conversations": turns})
        pairs.append({**records[-1], "rejected": ANSWERS[(index * 7 + 1) % 4]})
    for name, rows in (("pairs", pairs), ("train", records)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, images
