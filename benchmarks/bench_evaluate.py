"""How many questions per second does an evaluation answer, beside `.chat` one by one?

    python benchmarks/bench_evaluate.py
    python benchmarks/bench_evaluate.py --model exports/mine --data own.jsonl --images photos --batch-sizes 1 8

Without --model and --data it makes a toy model of the quick start's sizes with random weights, and the toy world's
held-out questions, about five per image; --one-per-image keeps one. In each round the same questions are answered by
`.chat`, one image loaded, cut and asked about after the other, and then as `tools/evaluate.py` does, in batches. The
ratio that is printed is the median over the rounds, with the lowest and the highest, by processor time of this process.
Answers must be equal.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.evaluation.benchmarks import open_data_sets  # noqa: E402
from xtuner_plugins.inference.batch_answers import answer_batch, lengths_of, plan_batches  # noqa: E402
from xtuner_plugins.inference.opening import open_session  # noqa: E402


def make_toy(folder: Path) -> tuple[str, str, str]:
    """(model, file of questions, images) of the toy world."""
    from xtuner_plugins.checkpoints.assembly.base import build_base
    from xtuner_plugins.toy.data import write_data
    from xtuner_plugins.toy.models import write_random_parts
    from xtuner_plugins.toy.pretrain import LLM, VISION

    vision, llm = write_random_parts(folder / "parts", vision_overrides=VISION, llm_overrides=LLM)
    build_base(vision, llm, folder / "model", dtype="float32", max_tiles=6)
    write_data(folder, {"test": 40, "crossing": 10}, workers=1)
    with (folder / "own.jsonl").open("w", encoding="utf-8") as file:
        for record in map(json.loads, (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()):
            question, answer = (message["value"] for message in record["conversations"])
            row = {"id": record["id"], "image": record["image"], "question": question, "answer": answer}
            file.write(json.dumps(row) + "\n")
    return str(folder / "model"), str(folder / "own.jsonl"), str(folder / "images")


def measure(model: str, data: str, images: str | None, args: argparse.Namespace) -> None:
    """Prints questions per second of both ways, and their ratio."""
    (data_set,) = open_data_sets([data], images=images, limit=args.limit)
    questions = [item.question for item in data_set.items]
    session, generation = open_session(model, device=args.device), {"max_new_tokens": args.max_new_tokens}

    def one_by_one() -> dict[str, str]:
        answers = {}
        for question in questions:
            answers[question.id] = session.answers([(question.text, question.paths)], **generation)[0]
        return answers

    def in_batches(size: int) -> dict[str, str]:
        batches, _ = plan_batches(questions, lengths_of(session), size)
        return {each.id: answer for batch in batches for each, answer in answer_batch(session, batch, generation)}

    def seconds(work, *words) -> tuple[float, dict[str, str]]:
        began = time.process_time()
        answers = work(*words)
        return time.process_time() - began, answers

    if args.one_per_image:
        questions = list({question.paths: question for question in questions}.values())
    num_images = len({question.paths for question in questions})
    print(f"{len(questions)} questions about {num_images} images, {args.max_new_tokens} tokens at most")
    alone, together = [], {size: [] for size in args.batch_sizes}
    for _ in range(args.rounds):
        took, expected = seconds(one_by_one)
        alone.append(took)
        for size in args.batch_sizes:
            took, found = seconds(in_batches, size)
            together[size].append(took)
            if found != expected:
                raise SystemExit(f"{sum(found[key] != expected[key] for key in found)} answers differ")
    rate = len(questions) / statistics.median(alone)
    print(f"one by one: {rate:.1f} questions/s")
    for size, spent in together.items():
        ratios = [one / many for one, many in zip(alone, spent, strict=True)]
        print(
            f"batches of {size:>3}: {len(questions) / statistics.median(spent):.1f} questions/s, "
            f"{statistics.median(ratios):.1f} times as many ({min(ratios):.1f} to {max(ratios):.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory (default: a toy model)")
    parser.add_argument("--data", help="file of questions, with --model")
    parser.add_argument("--images", help="their folder")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="questions at most")
    parser.add_argument("--one-per-image", action="store_true", help="no two questions about an image")
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.model:
        measure(args.model, args.data, args.images, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(*make_toy(Path(folder)), args)


if __name__ == "__main__":
    main()
