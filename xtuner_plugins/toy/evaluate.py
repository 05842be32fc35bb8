"""Answers held-out questions with a trained model, with tiling and with one tile, and scores answers.

    python -m xtuner_plugins.toy.evaluate MODEL TEST.jsonl IMAGES --out answers.json

`clean_process.py` asks the export the same questions in the same batches, in a process that can't import this project:
equal weights must give equal answers.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xtuner_plugins.toy.language import KINDS

BATCH_SIZE = 16
MAX_NEW_TOKENS = 8
MODES = {"tiling": None, "one tile": 1}  # most tiles; None takes the model's config


def read_questions(path: str | Path) -> list[dict]:
    """The records of a held-out split: `id`, `image`, `kind`, `question` (with `<image>`) and `answer`."""
    questions = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        asked, answered = (message["value"] for message in record["conversations"])
        facts = {key: record[key] for key in ("id", "image", "kind")}
        questions.append({**facts, "question": asked, "answer": answered})
    return questions


def is_right(given: str, expected: str) -> bool:
    """Whether an answer is the expected one, apart from case, surrounding space and a final period."""
    return given.strip().rstrip(".").strip().lower() == expected.strip().lower()


def score(questions: Sequence[Mapping], answers: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """`(right, asked)` for each kind of question, the kinds of the toy language first."""
    result = {}
    for kind in dict.fromkeys([*KINDS, *(q["kind"] for q in questions)]):
        asked = [q for q in questions if q["kind"] == kind]
        if asked:
            result[kind] = (sum(is_right(answers[q["id"]], q["answer"]) for q in asked), len(asked))
    return result


def summary(questions: Sequence[Mapping], by_mode: Mapping[str, Mapping[str, str]], needs: Iterable[str]) -> dict:
    """Accuracies by mode and kind, how many were asked, and as `table` text: a row per kind and a column per mode.

    Args:
        questions: From `read_questions`.
        by_mode: Answers by id, of each way of cutting images or each model.
        needs: The kinds that need the resolution.
    """
    scores = {mode: score(questions, answers) for mode, answers in by_mode.items()}
    asked, needs = {kind: number for kind, (_, number) in next(iter(scores.values())).items()}, set(needs)
    shares = {mode: {kind: right / asked[kind] for kind, (right, _) in kinds.items()} for mode, kinds in scores.items()}
    width, modes = max(13, *map(len, asked)) + 2, "".join(f"   {mode}" for mode in shares)
    lines = [f"{'question':<{width}}{'needs resolution':<18}{'asked':>6}{modes}"]
    for kind, number in asked.items():
        cells = "".join(f"{shares[mode][kind]:>{len(mode) + 3}.1%}" for mode in shares)
        lines.append(f"{kind:<{width}}{'yes' if kind in needs else 'no':<18}{number:>6}{cells}")
    return {"accuracy": shares, "num_asked": asked, "table": "\n".join(lines)}


def answer(session, questions: Sequence[Mapping], images: str | Path, modes: Iterable[str] = MODES) -> dict:
    """A session's answers: `{mode: {id: answer}}`."""
    items, answers = [(q["question"], [Path(images) / q["image"]]) for q in questions], {}
    for mode in modes:
        limits = {"max_tiles": MODES[mode], "max_new_tokens": MAX_NEW_TOKENS}
        given = session.answers(items, batch_size=BATCH_SIZE, **limits)
        answers[mode] = {q["id"]: text for q, text in zip(questions, given, strict=True)}
    return answers


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an export, or a work directory")
    parser.add_argument("questions")
    parser.add_argument("images")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES), help="(default: all)")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    from xtuner_plugins.inference.opening import open_session

    questions, session = read_questions(args.questions), open_session(args.model, device="cpu", dtype="float32")
    answers = answer(session, questions, args.images, args.modes)
    Path(args.out).write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    print(f"answered {len(questions)} questions in {len(answers)} ways: {args.out}")


if __name__ == "__main__":
    main()
