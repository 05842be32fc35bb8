"""Preference pairs of the toy world: a sign that is too small to read is better called so than guessed.

    python -m xtuner_plugins.toy.preference_data --out DIR

A scene is drawn at its full size, where the number can be read, and shrunk to a sixth, where nobody can read it: its
digits are 2 px high. Both sizes have the same proportions, so they are cut into the same tiles, and nothing but the
blur tells them apart. Two of three scenes to train on have only the full size and the question about the number: to
abstain is soon learned, while digits need practice or they are forgotten.

| question about the      | of an image     | chosen         | rejected         |
|-------------------------|-----------------|----------------|------------------|
| number                  | of full size    | the number     | `UNREADABLE`, or |
|                         |                 |                | one digit wrong  |
| number                  | shrunk          | `UNREADABLE`   | some number      |
| colours, count, presence| of either size  | the answer     | another answer   |

root/pairs.jsonl     to train on
root/test.jsonl      held-out questions as in `data.py`, of the kinds `number`, `UNREADABLE_KIND` and the others
root/images/pairs/... root/images/test/...
"""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from xtuner_plugins.processes import die_with_parent
from xtuner_plugins.toy.data import GRIDS, JPEG, make_parser, messages
from xtuner_plugins.toy.images import COLORS, draw, make_scene
from xtuner_plugins.toy.language import NUMBER_WORDS, Question, ask

UNREADABLE = "not readable"
UNREADABLE_KIND = "number, too small"
SHRUNK = 6  # times
COUNTS = {"pairs": 4200, "test": 400}  # scenes


def write_pairs(root: str | Path, counts: dict[str, int], *, seed: int = 0, workers: int = 2) -> None:
    """Writes pairs and held-out questions; the same seed gives the same files."""
    root = Path(root)
    with ProcessPoolExecutor(workers, initializer=die_with_parent) as pool:
        for split in ("pairs", "test"):
            (root / "images" / split).mkdir(parents=True, exist_ok=True)
            parts = pool.map(partial(_make_records, root, split, seed), range(counts[split]), chunksize=25)
            lines = [json.dumps(record) + "\n" for records in parts for record in records]
            (root / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _make_records(root: Path, split: str, seed: int, index: int) -> list[dict]:
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
            facts = {"id": f"{Path(name).stem}-{number}", "image": name}
            kind, chosen, rejected = _answers(question, shrunk, rng)
            if split == "pairs":
                answers = {"chosen": chosen, "rejected": rejected}
                records.append({**facts, "question": f"<image>\n{question.text}", **answers})
            else:
                records.append({**facts, "conversations": messages([(question.text, chosen)]), "kind": kind})
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


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = make_parser(__doc__).parse_args(argv)
    counts = {split: max(16, round(count * args.scale)) for split, count in COUNTS.items()}
    write_pairs(args.out, counts, seed=args.seed)
    drawn = {split: len(list((Path(args.out) / "images" / split).iterdir())) for split in counts}
    print(f"drew {', '.join(f'{count} images of {split}' for split, count in drawn.items())} for {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
