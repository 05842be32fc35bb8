"""Preference tuning on toy data in some minutes on a CPU: a model learns to say that a sign is too small to read.

    python -m xtuner_plugins.toy.preference

pairs -> check -> MPO from the quick start's model -> export -> held-out questions, asked before and after. The quick
start's model guesses where it can't read. The pairs prefer "not readable" to a guess where the sign is too small, and
the number to "not readable" where it isn't (see `data`).

Everything is written to `work_dirs/preference`; the results of an earlier run are renamed. Needs the quick start's
model in `work_dirs/quickstart`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from xtuner_plugins.toy import evaluate
from xtuner_plugins.toy.data import UNREADABLE_KIND
from xtuner_plugins.toy.quickstart import OUT as QUICKSTART
from xtuner_plugins.toy.quickstart import RUN_IN_ROOT, Chain, run_demo

OUT = Path("work_dirs/preference")  # where the config in configs/toy looks for its data
CONFIG = "configs/toy/toy_finetune_mpo_full.py"
BEFORE, AFTER = "before", "after MPO"
WANTED_ABSTAINING, WANTED_LOSS = 0.9, 0.02


def run_chain(chain: Chain, scale: float, seed: int) -> dict:
    """Runs every stage; returns the content of `results.json`.

    Raises:
        StageError: A command failed.
    """
    root = chain.root
    data, model, run = OUT / "data", OUT / "model", OUT / "runs/finetune_mpo_full"
    scaled = ["--scale", str(scale), "--seed", str(seed)]
    chain.run("images and pairs", ["-m", "xtuner_plugins.toy.data", "--pairs", "--out", data, *scaled])
    chain.run("check the pairs", ["tools/check_data.py", CONFIG])
    chain.run("MPO on projector and LLM", ["tools/train.py", CONFIG, "--seed", seed, "--work-dir", run])
    chain.run("export the model", ["tools/convert_to_official.py", CONFIG, run, model])
    test, images = data / "test.jsonl", data / "images"
    models = {BEFORE: QUICKSTART / "model", AFTER: model}
    files = {name: OUT / f"answers_{name.split()[0]}.json" for name in models}
    ask = ["-m", "xtuner_plugins.toy.evaluate"]
    chain.run(
        "answer held-out questions: before and after",
        *([*ask, models[name], test, images, "--modes", "tiling", "--out", files[name]] for name in models),
    )
    questions = evaluate.read_questions(root / test)
    answers = {name: json.loads((root / path).read_text("utf-8"))["tiling"] for name, path in files.items()}
    from xtuner_plugins.engine.hooks.losses_png import draw_losses

    draw_losses({"MPO": root / run}, chain.out / "losses.png")
    return chain.keep(evaluate.summary(questions, answers, ("number",)))


def verdict(result: dict) -> list[tuple[bool, str]]:
    """`(reached, sentence)` for each goal."""
    before, after = (result["accuracy"][name] for name in (BEFORE, AFTER))
    lost, guessed, abstains = before["number"] - after["number"], before[UNREADABLE_KIND], after[UNREADABLE_KIND]
    said = f"signs too small to read of which it says so: {guessed:.1%} before, {abstains:.1%} after"
    return [
        (abstains >= WANTED_ABSTAINING, f"{said} (wanted: 90 %)"),
        (lost <= WANTED_LOSS, f"points lost on readable signs: {100 * lost:.1f} (wanted: at most 2)"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 0 when every goal was reached."""
    needed = {CONFIG: RUN_IN_ROOT, f"{QUICKSTART}/model/config.json": "run `make quickstart` first"}
    return run_demo(argv, __doc__, OUT, needed, run_chain, verdict)


if __name__ == "__main__":
    raise SystemExit(main())
