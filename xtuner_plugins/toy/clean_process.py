"""Opens an export without this project, and answers held-out questions.

    python -I clean_process.py EXPORT TEST.jsonl IMAGES ANSWERS.json

The model is opened by `inference/verify_probe.py`, which makes this project impossible to import, and tiles are cut
here by the published recipe: what answers is the code that the export ships.
"""

import json
import runpy
import sys
from pathlib import Path

PROBE = runpy.run_path(str(Path(__file__).parents[1] / "inference" / "verify_probe.py"))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.transforms import functional  # noqa: E402

BATCH_SIZE = 16
MAX_NEW_TOKENS = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cut(path, side, most):
    """Normalized tiles float32 ``[T, 3, side, side]`` of an image: closest grid, row-major crops, thumbnail last."""
    image = Image.open(path).convert("RGB")
    grids = {(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most}
    (columns, rows), best_gap = (1, 1), float("inf")
    for i, j in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        gap = abs(image.width / image.height - i / j)
        if gap < best_gap or (gap == best_gap and image.width * image.height > 0.5 * side * side * i * j):
            (columns, rows), best_gap = (i, j), gap
    whole = image.resize((side * columns, side * rows))
    corners = [(x * side, y * side) for y in range(rows) for x in range(columns)]
    tiles = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
    tiles += [image.resize((side, side))] * (len(tiles) > 1)
    return torch.stack([functional.normalize(functional.to_tensor(tile), MEAN, STD) for tile in tiles])


def main(export, questions, images, out):
    """Answers the questions with the export and writes the answers as JSON."""
    records = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()]
    model, tokenizer, _ = PROBE["open_export"](Path(export))
    side = model.config.force_image_size
    answers = {}
    for mode, most in (("tiling", model.config.max_dynamic_patch), ("one tile", 1)):
        answers[mode] = {}
        for start in range(0, len(records), BATCH_SIZE):
            batch = records[start : start + BATCH_SIZE]
            tiles = [cut(Path(images) / record["image"], side, most) for record in batch]
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
