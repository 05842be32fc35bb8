"""Opens an export without this project, and answers held-out questions.

    python -I clean_process.py EXPORT TEST.jsonl IMAGES ANSWERS.json

Model and tiles come from `inference/verify_probe.py`, which makes this project impossible to import: what answers is
the code that the export ships.
"""

import json
import runpy
import sys
from pathlib import Path

PROBE = runpy.run_path(str(Path(__file__).parents[1] / "inference" / "verify_probe.py"))

import torch  # noqa: E402

BATCH_SIZE = 16
MAX_NEW_TOKENS = 8


def main(export, questions, images, out):
    """Answers the questions with the export and writes the answers as JSON."""
    records = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()]
    model, tokenizer, _ = PROBE["open_export"](export)
    side = model.config.force_image_size
    answers = {}
    for mode, most in (("tiling", model.config.max_dynamic_patch), ("one tile", 1)):
        answers[mode] = {}
        for start in range(0, len(records), BATCH_SIZE):
            batch = records[start : start + BATCH_SIZE]
            tiles = [PROBE["cut"](Path(images) / record["image"], side, 1, most, True) for record in batch]
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
