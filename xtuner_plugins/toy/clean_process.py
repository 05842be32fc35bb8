"""Opens an export as a stranger would, without this project, and answers held-out questions.

    python -I clean_process.py EXPORT TEST.jsonl IMAGES ANSWERS.json

Needs torch, torchvision, transformers and Pillow. This project is made impossible to import first, even where it is
installed: what answers is the code that the export ships. The tiling is written out from its published description.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor
from transformers import AutoModel, AutoTokenizer

BATCH_SIZE = 16
MAX_NEW_TOKENS = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Barrier:
    """Refuses this project to the import machinery."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "xtuner_plugins":
            raise ImportError(f"{name}: this process must do without the project")


def best_grid(width, height, most, side):
    """Columns and rows nearest to the image's shape; of two, the larger if the image fills half of it."""
    best, best_distance = (1, 1), float("inf")
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        if distance < best_distance or (
            distance == best_distance and width * height > 0.5 * side * side * columns * rows
        ):
            best, best_distance = (columns, rows), distance
    return best


def load_tiles(path, most, side):
    """Normalized tiles [T, 3, side, side], the thumbnail last where there are several."""
    image = Image.open(path).convert("RGB")
    columns, rows = best_grid(*image.size, most, side)
    resized = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    corners = [(c * side, r * side) for r in range(rows) for c in range(columns)]
    tiles = [resized.crop((x, y, x + side, y + side)) for x, y in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
    return torch.stack([normalize(to_tensor(tile), MEAN, STD) for tile in tiles])


def main(export, questions, images, out):
    """Answers the questions with the export and writes the answers as JSON."""
    sys.meta_path.insert(0, _Barrier)
    records = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()]
    model = AutoModel.from_pretrained(export, torch_dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True, use_fast=True)
    side = model.config.force_image_size
    answers = {}
    for mode, most in (("tiling", model.config.max_dynamic_patch), ("one tile", 1)):
        answers[mode] = {}
        for start in range(0, len(records), BATCH_SIZE):
            batch = records[start : start + BATCH_SIZE]
            tiles = [load_tiles(Path(images) / record["image"], most, side) for record in batch]
            given = model.batch_chat(
                tokenizer,
                torch.cat(tiles),
                [record["conversations"][0]["value"] for record in batch],
                {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False},
                num_patches_list=[len(part) for part in tiles],
            )
            answers[mode].update(zip((record["id"] for record in batch), given))  # noqa: B905 (equal by contract)
    Path(out).write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    print(f"{type(model).__module__}: answered {len(records)} questions in {len(answers)} ways")


if __name__ == "__main__":
    main(*sys.argv[1:])
