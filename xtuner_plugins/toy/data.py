"""The toy data in LLaVA format: captions for the warm-up, conversations for fine-tuning, questions held out.

    python -m xtuner_plugins.toy.data --out DIR

root/pretrain.json     captions, one record per image
root/train.jsonl       conversations of several turns, one per image, and some without an image
root/test.jsonl        held-out questions, one record each, with its kind; those about signs across two tiles come last
root/images/pretrain/00000.jpg  root/images/train/...  root/images/test/...  root/images/crossing/...
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from xtuner_plugins.processes import die_with_parent
from xtuner_plugins.toy.images import Scene, draw, make_scene
from xtuner_plugins.toy.language import ACROSS, CAPTION_REQUESTS, ask, describe

GRIDS = {  # columns and rows of tiles to choose from
    "pretrain": ((3, 2), (3, 2), (2, 3), (2, 3), (2, 2), (1, 1)),
    "train": ((3, 2), (3, 2), (2, 3), (2, 3), (2, 2), (1, 1)),
    "test": ((3, 2), (2, 3)),
    "crossing": ((3, 2), (2, 3)),
}
CROSSING = {"pretrain": 0.25, "train": 0.25, "test": 0.0, "crossing": 1.0}  # share of signs across two tiles
JPEG = {"format": "JPEG", "quality": 92, "subsampling": 0}
COUNTS = {"pretrain": 1600, "train": 3200, "test": 100, "crossing": 100}  # images
TEXT_SHARE = 0.05  # of the fine-tuning records: sums of two digits, without an image


def write_data(root: str | Path, counts: Mapping[str, int], *, seed: int = 0, workers: int = 2) -> dict[str, Path]:
    """Writes the splits; the same seed gives the same files.

    Args:
        root: Directory to write; made when missing.
        counts: Images per split, such as `COUNTS`; a missing split gets none. Every question is asked about each image
            of `test`; about those of `crossing`, whose signs cross a tile border, only the number.
        seed: Random seed.
        workers: Processes that draw.

    Returns:
        The annotation file of each purpose.
    """
    root = Path(root)
    files = {"pretrain": root / "pretrain.json", "train": root / "train.jsonl", "test": root / "test.jsonl"}
    splits = {"pretrain": ("pretrain",), "train": ("train",), "test": ("test", "crossing")}
    with ProcessPoolExecutor(workers, initializer=die_with_parent) as pool:
        for purpose, path in files.items():
            records = []
            for split in splits[purpose]:
                (root / "images" / split).mkdir(parents=True, exist_ok=True)
                parts = pool.map(partial(_make_records, root, split, seed), range(counts.get(split, 0)), chunksize=50)
                records += [record for part in parts for record in part]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            text = json.dumps(records, indent=1) + "\n" if path.suffix == ".json" else lines
            path.write_text(text, encoding="utf-8")
    return files


def scene_of(split: str, index: int, seed: int = 0) -> tuple[Scene, random.Random]:
    """The scene of an image, and the random generator that its questions continue with."""
    rng = random.Random(f"{split}-{seed}-{index}")
    return make_scene(rng, rng.choice(GRIDS[split]), crossing=CROSSING[split]), rng


def _make_records(root: Path, split: str, seed: int, index: int) -> list[dict]:
    """Draws one image and returns its records."""
    scene, rng = scene_of(split, index, seed)
    if split == "train" and rng.random() < TEXT_SHARE:
        sums = [(rng.randrange(5), rng.randrange(5)) for _ in range(4)]
        return [_record(f"{split}-{index:05d}", [(f"What is {a} plus {b}?", str(a + b)) for a, b in sums])]
    stem, name = f"{split}-{index:05d}", f"{split}/{index:05d}.jpg"
    draw(scene).save(root / "images" / name, **JPEG)
    if split == "pretrain":
        return [_record(stem, [(rng.choice(CAPTION_REQUESTS), describe(scene))], name)]
    questions = ask(scene, rng)
    if split == "train":
        return [_record(stem, [(q.text, q.answer) for q in questions], name)]
    asked = [q for q in questions if split == "test" or q.kind == ACROSS]
    singles = [_record(f"{stem}-{number}", [(q.text, q.answer)], name) for number, q in enumerate(asked)]
    return [{**single, "kind": q.kind} for single, q in zip(singles, asked, strict=True)]


def _record(name: str, turns: Sequence[tuple[str, str]], image: str | None = None) -> dict:
    return {"id": name, **({"image": image} if image else {}), "conversations": messages(turns, bool(image))}


def messages(turns: Sequence[tuple[str, str]], has_image: bool = True) -> list[dict[str, str]]:
    """Questions and answers as a record holds them; the image comes before the first question."""
    found = []
    for index, (question, answer) in enumerate(turns):
        prefix = "<image>\n" if has_image and index == 0 else ""
        found += [{"from": "human", "value": prefix + question}, {"from": "gpt", "value": answer}]
    return found


def make_parser(about: str) -> argparse.ArgumentParser:
    """The command line of all that a demo makes: where, how much of it, and from which seed."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--scale", type=float, default=1.0, help="share of images and steps (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = make_parser(__doc__).parse_args(argv)
    counts = {split: max(16, round(count * args.scale)) for split, count in COUNTS.items()}
    write_data(args.out, counts, seed=args.seed)
    print(f"drew {', '.join(f'{count} images of {split}' for split, count in counts.items())} for {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
