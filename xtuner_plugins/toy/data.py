"""The toy data in LLaVA format: captions for the warm-up, conversations for fine-tuning, questions held out.

    python -m xtuner_plugins.toy.data --out DIR

root/pretrain.json     captions, one record per image
root/train.jsonl       conversations of several turns, one per image, and some without an image
root/test.jsonl        held-out questions, one record each, with its kind; those about signs across two tiles come last
root/images/pretrain/00000.jpg  root/images/train/...  root/images/test/...  root/images/crossing/...

With `--pairs` preference pairs: a sign that is too small to read is better called so than guessed. A scene is drawn at
its full size, where the number can be read, and shrunk to a sixth, where nobody can read it: its digits are 2 px high.
Both sizes have the same proportions, so they are cut into the same tiles, and nothing but the blur tells them apart.
Two of three scenes to train on have only the full size and the question about the number: to abstain is soon learned,
while digits need practice or they are forgotten.

| question about the      | of an image     | chosen         | rejected         |
|-------------------------|-----------------|----------------|------------------|
| number                  | of full size    | the number     | `UNREADABLE`, or |
|                         |                 |                | one digit wrong  |
| number                  | shrunk          | `UNREADABLE`   | some number      |
| colours, count, presence| of either size  | the answer     | another answer   |

root/pairs.jsonl     to train on
root/test.jsonl      held-out questions as above, of the kinds `number`, `UNREADABLE_KIND` and the others
root/images/pairs/... root/images/test/...
"""

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from xtuner_plugins.processes import die_with_parent
from xtuner_plugins.toy.images import COLORS, Scene, draw, make_scene
from xtuner_plugins.toy.language import ACROSS, CAPTION_REQUESTS, NUMBER_WORDS, Question, ask, describe

GRIDS = {  # columns and rows of tiles to choose from
    "pretrain": ((3, 2), (3, 2), (2, 3), (2, 3), (2, 2), (1, 1)),
    "train": ((3, 2), (3, 2), (2, 3), (2, 3), (2, 2), (1, 1)),
    "test": ((3, 2), (2, 3)),
    "crossing": ((3, 2), (2, 3)),
}
CROSSING = {"pretrain": 0.25, "train": 0.25, "test": 0.0, "crossing": 1.0}  # share of signs across two tiles
JPEG = {"format": "JPEG", "quality": 92, "subsampling": 0}
COUNTS = {"pretrain": 1600, "train": 3200, "test": 100, "crossing": 100}  # images
PAIRS = {"pairs": 4200, "test": 400}  # scenes
TEXT_SHARE = 0.05  # of the fine-tuning records: sums of two digits, without an image
UNREADABLE = "not readable"
UNREADABLE_KIND = "number, too small"
SHRUNK = 6  # times


def write_data(root: str | Path, counts: Mapping[str, int], *, seed: int = 0, workers: int = 2) -> None:
    """Writes the splits; the same seed gives the same files.

    Args:
        root: Directory to write; made when missing.
        counts: Images per split, such as `COUNTS`; a missing split gets none. Every question is asked about each image
            of `test`; about those of `crossing`, whose signs cross a tile border, only the number.
        seed: Random seed.
        workers: Processes that draw.
    """
    files = {"pretrain.json": ("pretrain",), "train.jsonl": ("train",), "test.jsonl": ("test", "crossing")}
    _write(Path(root), files, counts, _make_records, seed, workers)


def write_pairs(root: str | Path, counts: Mapping[str, int], *, seed: int = 0, workers: int = 2) -> None:
    """Writes pairs and held-out questions; arguments as of `write_data`, counts such as `PAIRS`."""
    _write(Path(root), {"pairs.jsonl": ("pairs",), "test.jsonl": ("test",)}, counts, _make_pairs, seed, workers)


def _write(root: Path, files: Mapping[str, Sequence[str]], counts, make: Callable, seed: int, workers: int) -> None:
    with ProcessPoolExecutor(workers, initializer=die_with_parent) as pool:
        for name, splits in files.items():
            records = []
            for split in splits:
                (root / "images" / split).mkdir(parents=True, exist_ok=True)
                parts = pool.map(partial(make, root, split, seed), range(counts.get(split, 0)), chunksize=50)
                records += [record for part in parts for record in part]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            text = json.dumps(records, indent=1) + "\n" if name.endswith(".json") else lines
            (root / name).write_text(text, encoding="utf-8")


def scene_of(split: str, index: int, seed: int = 0) -> tuple[Scene, random.Random]:
    """The scene of an image, and the random generator that its questions continue with."""
    rng = random.Random(f"{split}-{seed}-{index}")
    return make_scene(rng, rng.choice(GRIDS[split]), crossing=CROSSING[split]), rng


def _make_records(root: Path, split: str, seed: int, index: int) -> list[dict]:
    """Draws one image and returns its records."""
    scene, rng = scene_of(split, index, seed)
    stem, image = f"{split}-{index:05d}", {"image": f"{split}/{index:05d}.jpg"}
    if split == "train" and rng.random() < TEXT_SHARE:
        sums = [(rng.randrange(5), rng.randrange(5)) for _ in range(4)]
        turns = [(f"What is {a} plus {b}?", str(a + b)) for a, b in sums]
        return [{"id": stem, "conversations": messages(turns, has_image=False)}]
    draw(scene).save(root / "images" / image["image"], **JPEG)
    if split == "pretrain":
        return [{"id": stem, **image, "conversations": messages([(rng.choice(CAPTION_REQUESTS), describe(scene))])}]
    questions = ask(scene, rng)
    if split == "train":
        return [{"id": stem, **image, "conversations": messages([(q.text, q.answer) for q in questions])}]
    asked = [q for q in questions if split == "test" or q.kind == ACROSS]
    turns = [{"conversations": messages([(q.text, q.answer)]), "kind": q.kind} for q in asked]
    return [{"id": f"{stem}-{number}", **image, **turn} for number, turn in enumerate(turns)]


def _make_pairs(root: Path, split: str, seed: int, index: int) -> list[dict]:
    """Draws one scene and returns its pairs, or its held-out questions."""
    rng = random.Random(f"preference-{split}-{seed}-{index}")
    scene = make_scene(rng, rng.choice(GRIDS["test"]))
    image, questions, records = draw(scene), ask(scene, rng), []
    whole = split == "test" or index % 3 == 0
    if split == "pairs":  # the question about the number, and the first of the others, which are in random order
        questions = sorted(questions, key=lambda question: question.kind != "number")[: 2 if whole else 1]
    for shrunk in (False, True) if whole else (False,):
        name = f"{split}/{index:05d}{'_small' if shrunk else ''}.jpg"
        if shrunk:
            image = image.resize((image.width // SHRUNK, image.height // SHRUNK), Image.Resampling.LANCZOS)
        image.save(root / "images" / name, **JPEG)
        for number, question in enumerate(questions):
            kind, chosen, rejected = _answers(question, shrunk, rng)
            record = {"id": f"{Path(name).stem}-{number}", "image": name}
            if split == "pairs":
                record |= {"question": f"<image>\n{question.text}", "chosen": chosen, "rejected": rejected}
            else:
                record |= {"conversations": messages([(question.text, chosen)]), "kind": kind}
            records.append(record)
    return records


def _answers(question: Question, shrunk: bool, rng: random.Random) -> tuple[str, str, str]:
    """The kind of a question, its better answer and a worse one."""
    if question.kind == "number":
        if shrunk:
            return UNREADABLE_KIND, UNREADABLE, str(rng.randint(10, 99))
        place, number = rng.randrange(len(question.answer)), question.answer
        digit = rng.choice([digit for digit in "123456789" if digit != number[place]])
        misread = number[:place] + digit + number[place + 1 :]
        return "number", number, rng.choice((UNREADABLE, misread))
    others = {"colour": COLORS, "count": NUMBER_WORDS[1:4], "presence": ("yes", "no")}[question.kind]
    return question.kind, question.answer, rng.choice([other for other in others if other != question.answer])


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


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", action="store_true", help="preference pairs instead")
    args = parser.parse_args(argv)
    write, whole = (write_pairs, PAIRS) if args.pairs else (write_data, COUNTS)
    counts = {split: max(16, round(count * args.scale)) for split, count in whole.items()}
    write(args.out, counts, seed=args.seed)
    kind = "scenes" if args.pairs else "images"
    print(f"drew {', '.join(f'{count} {kind} of {split}' for split, count in counts.items())} for {args.out}")


if __name__ == "__main__":
    main()
