"""Preference tuning on toy data in some minutes on a CPU: a model learns to say that a sign is too small to read.

    python -m xtuner_plugins.toy.preference

pairs -> check -> MPO from the quick start's model -> export -> held-out questions, asked before and after. The quick
start's model guesses where it can't read. The pairs prefer "not readable" to a guess where the sign is too small, and
the number to "not readable" where it isn't (see `preference_data`).

Everything is written to `work_dirs/preference`; the results of an earlier run are renamed. Needs the quick start's
model in `work_dirs/quickstart`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from xtuner_plugins.toy import evaluate
from xtuner_plugins.toy.preference_data import UNREADABLE_KIND
from xtuner_plugins.toy.quickstart import OUT as QUICKSTART
from xtuner_plugins.toy.quickstart import Chain, StageError, keep_earlier, last_checkpoint, only_one

OUT = Path("work_dirs/preference")  # where the config in configs/toy looks for its data
CONFIG = "configs/toy/toy_finetune_mpo_full.py"
BEFORE, AFTER = "before", "after MPO"
WANTED_ABSTAINING, WANTED_LOSS = 0.9, 0.02


def run_chain(root: Path, scale: float, threads: int, seed: int) -> dict:
    """Runs every stage; returns the content of `results.json`.

    Raises:
        StageError: A command failed.
    """
    out = root / OUT
    out.mkdir(parents=True)
    begin = time.perf_counter()
    chain = Chain(root, out, threads)
    data, model, run = OUT / "data", OUT / "model", OUT / "runs/finetune_mpo_full"
    scaled = ["--scale", str(scale), "--seed", str(seed)]
    chain.run("images and pairs", ["-m", "xtuner_plugins.toy.preference_data", "--out", data, *scaled])
    chain.run("check the pairs", ["tools/check_data.py", CONFIG])
    chain.run("MPO on projector and LLM", ["tools/train.py", CONFIG, "--seed", seed, "--work-dir", run])
    chain.run("export the model", ["tools/convert_to_official.py", CONFIG, last_checkpoint(root / run), model])
    test, images = data / "test.jsonl", data / "images"
    files = {BEFORE: OUT / "answers_before.json", AFTER: OUT / "answers_after.json"}
    ask = ["-m", "xtuner_plugins.toy.preference", "--answer"]
    chain.run(
        "answer held-out questions: before and after",
        [*ask, QUICKSTART / "model", test, images, files[BEFORE]],
        [*ask, model, test, images, files[AFTER]],
    )
    questions = evaluate.read_questions(root / test)
    answers = {name: json.loads((root / path).read_text("utf-8")) for name, path in files.items()}
    from xtuner_plugins.engine.hooks.losses_png import draw_losses
    from xtuner_plugins.toy.charts import draw_contact_sheet

    draw_losses({"MPO": root / run}, out / "losses.png")
    draw_contact_sheet(_chosen(questions), answers, root / images, out / "contact_sheet.png")
    result = summarize(questions, answers)
    seconds = {name: round(value, 1) for name, value in chain.seconds.items()}
    result["seconds"] = {**seconds, "all": round(time.perf_counter() - begin, 1)}
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _chosen(questions: Sequence[dict], rows: int = 6) -> list[dict]:
    """Questions about numbers for the contact sheet, readable and too small in turn, each of another scene."""
    pools = [[q for q in questions if q["kind"] == kind] for kind in ("number", UNREADABLE_KIND)]
    return [pools[index % 2][index] for index in range(min(rows, *map(len, pools)))]


def summarize(questions: Sequence[dict], answers: dict[str, dict[str, str]]) -> dict:
    """Accuracies by kind before and after, and the table as text."""
    scores = {name: evaluate.score(questions, given) for name, given in answers.items()}
    return {
        "accuracy": {
            name: {kind: right / asked for kind, (right, asked) in kinds.items()} for name, kinds in scores.items()
        },
        "num_asked": {kind: asked for kind, (_, asked) in scores[BEFORE].items()},
        "table": evaluate.table(questions, answers, ("number",)),
    }


def verdict(result: dict) -> list[tuple[bool, str]]:
    """`(reached, sentence)` for each goal."""
    before, after = (result["accuracy"][name] for name in (BEFORE, AFTER))
    lost = before["number"] - after["number"]
    return [
        (
            after[UNREADABLE_KIND] >= WANTED_ABSTAINING,
            f"signs too small to read of which it says so: {before[UNREADABLE_KIND]:.1%} before, "
            f"{after[UNREADABLE_KIND]:.1%} after (wanted: 90 %)",
        ),
        (lost <= WANTED_LOSS, f"points lost on readable signs: {100 * lost:.1f} (wanted: at most 2)"),
    ]


def answer(model: str, questions: str, images: str, out: str) -> int:
    """Asks a model the held-out questions and writes ``{id: answer}``."""
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    from xtuner_plugins.inference.opening import open_session

    asked = evaluate.read_questions(questions)
    session = open_session(model, device="cpu", dtype="float32")
    items = [(q["question"], [Path(images) / q["image"]]) for q in asked]
    given = session.answers(items, batch_size=evaluate.BATCH_SIZE, max_new_tokens=evaluate.MAX_NEW_TOKENS)
    pairs = zip((q["id"] for q in asked), given, strict=True)
    Path(out).write_text(json.dumps(dict(pairs), indent=1) + "\n", encoding="utf-8")
    print(f"answered {len(asked)} questions: {out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 0 when every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of images and steps (below 1: only a trial)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of images and training (default 0)")
    parser.add_argument("--answer", nargs=4, metavar=("MODEL", "QUESTIONS", "IMAGES", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.answer:
        return answer(*args.answer)
    if not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale}: give more than 0 and at most 1")
    root = Path.cwd().resolve()
    if not (root / CONFIG).is_file():
        print(f"error: {root} has no {CONFIG}; run this in the repository's root", file=sys.stderr)
        return 1
    if not (root / QUICKSTART / "model/config.json").is_file():
        print(f"error: {QUICKSTART}/model isn't there; run `make quickstart` first", file=sys.stderr)
        return 1
    try:
        with only_one(root / OUT):
            earlier = keep_earlier(root / OUT)
            if earlier:
                print(f"The earlier {OUT} is now {earlier.relative_to(root)}; delete it when you no longer need it.")
            result = run_chain(root, args.scale, args.threads, args.seed)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{result['table']}\n")
    reached = verdict(result) if args.scale == 1 else []
    for good, sentence in reached:
        print(("reached   " if good else "NOT REACHED  ") + sentence)
    print(f"\n{result['seconds']['all']:.0f} s in all; {OUT} has losses.png, contact_sheet.png, results.json, logs/")
    return 0 if all(good for good, _ in reached) else 1


if __name__ == "__main__":
    raise SystemExit(main())
