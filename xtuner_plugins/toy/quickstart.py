"""The whole chain on toy data, with the commands that a user would type.

parts and data -> base -> check -> projector warm-up -> export -> fine-tuning -> export -> held-out questions, answered
by the trained model and by its export in a process without this project. Beside each training runs its control, which
differs in one setting: it sees each image as one tile. It shows that reading needs the tiles in training, too: a model
that was trained with tiles would be at a disadvantage with one tile alone.

Everything is written to `work_dirs/quickstart`; the results of an earlier quick start are renamed.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xtuner_plugins.engine.watch.console import STEP_LINE
from xtuner_plugins.processes import quiet_imports, start_bound
from xtuner_plugins.toy import evaluate
from xtuner_plugins.toy.language import RESOLUTION_KINDS

OUT = Path("work_dirs/quickstart")  # where the configs in configs/toy look for their data and base
WARM_UP, FINE_TUNE = "configs/toy/toy_pretrain_mlp.py", "configs/toy/toy_finetune_full.py"
CLEAN_PROCESS = Path(__file__).with_name("clean_process.py")
CONTROL = "trained with one tile"
WANTED_ACCURACY, WANTED_GAP = 0.9, 0.3
RUN_IN_ROOT = "run this in the repository's root"

PROGRESS = re.compile(r"^\[(?:vision|llm)\]|^wrote |^all \d|^answered|^drew|answered \d|error:")


class StageError(RuntimeError):
    """A command of the chain failed; the message shows its last lines."""


class Chain:
    """Runs commands one after the other; prints each command, its progress and its duration.

    Args:
        root: The repository's root, where the commands run.
        out: Gets `logs/`.
    """

    def __init__(self, root: Path, out: Path):
        self.root, self.out, self.logs = root, out, out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        # The toy runs are sized for one core and are as fast there as on two, or on a GPU.
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.env |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.seconds: dict[str, float] = {}
        self.begin = time.perf_counter()

    def keep(self, result: dict) -> dict:
        """Writes `results.json` with the seconds of each stage, and returns it."""
        seconds = {**self.seconds, "all": time.perf_counter() - self.begin}
        result["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        (self.out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return result

    def run(self, name: str, *commands: Sequence[str | Path]) -> None:
        """Runs the commands of a stage; several run side by side.

        Raises:
            StageError: One of them failed.
        """
        begin, running = time.perf_counter(), []
        print(f"\n== {name}", flush=True)
        for index, command in enumerate(commands):
            command = [str(part) for part in command]
            label = f"{'abc'[index]}: " if len(commands) > 1 else ""
            print(f"{label}$ " + " ".join(["python", *command]), flush=True)
            log = self.logs / f"{len(self.seconds) + 1}{'abc'[index]}_{name.split(':')[0].replace(' ', '_')}.txt"
            with log.open("w", encoding="utf-8") as file:
                options = {"cwd": self.root, "env": self.env, "stdout": file, "stderr": subprocess.STDOUT}
                running.append((start_bound([sys.executable, *command], **options), log, label))
        self._follow(running)
        self.seconds[name] = time.perf_counter() - begin
        print(f"   {self.seconds[name]:.0f} s", flush=True)

    @staticmethod
    def _follow(running: list[tuple[subprocess.Popen, Path, str]]) -> None:
        """Prints progress lines of the logs, each after its command's label, until every process has ended."""
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(log.open(encoding="utf-8", errors="replace")) for _, log, _ in running]
            for process, _, _ in running:
                stack.callback(process.wait)
                stack.callback(process.terminate)
            alive = True
            while alive:
                alive = any(process.poll() is None for process, _, _ in running)
                for reader, (process, log, label) in zip(readers, running, strict=True):
                    for shown in filter(None, map(progress_line, reader)):
                        print(f"   {label}{shown}", flush=True)
                    if process.poll():
                        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
                        raise StageError(f"exit status {process.returncode}; the whole output is in {log}:\n{tail}")
                time.sleep(0.3 * alive)


def progress_line(line: str) -> str | None:
    """The part of a log line that is shown, or None; of a training, every 50th step and the last."""
    line = line.rstrip()
    if step := STEP_LINE.search(line):
        number, last, loss = step["step"], step["last"], step["loss"]
        return f"step {number}/{last}  loss {loss}" if int(number) % 50 == 0 or number == last else None
    return line if PROGRESS.search(line) else None


def keep_earlier(out: Path) -> Path | None:
    """Renames an earlier result to the next free ``<name>.1``, ``<name>.2``, ...; returns its new path."""
    if not os.path.lexists(out):
        return None
    number = next(n for n in itertools.count(1) if not os.path.lexists(out.with_name(f"{out.name}.{n}")))
    return out.rename(out.with_name(f"{out.name}.{number}"))


def run_chain(chain: Chain, scale: float, seed: int) -> dict:
    """Runs every stage; returns the content of `results.json`.

    Raises:
        StageError: A command failed.
    """
    root, out = chain.root, chain.out
    data, images, scaled = OUT / "data", OUT / "data/images", ["--scale", str(scale), "--seed", str(seed)]
    parts, base, warm, model, control = (OUT / name for name in ("parts", "base", "pretrain_mlp", "model", "control"))

    chain.run("images and questions", ["-m", "xtuner_plugins.toy.data", "--out", data, *scaled])
    chain.run(
        "pre-train the parts",
        ["-m", "xtuner_plugins.toy.pretrain", "vision", "--out", parts / "vision", *scaled],
        ["-m", "xtuner_plugins.toy.pretrain", "llm", "--out", parts / "llm", *scaled],
    )
    build = ["tools/build_base_model.py", "--vision", parts / "vision", "--llm", parts / "llm", "--out", base]
    chain.run("assemble the base", [*build, "--max-tiles", "6", "--dtype", "float32"])
    chain.run("check the data", ["tools/check_data.py", WARM_UP])
    train = ["tools/train.py", WARM_UP, "--seed", seed, "--work-dir"]
    chain.run(
        "warm up the projector, and that of the control",
        [*train, OUT / "runs/pretrain_mlp"],
        [*train, control / "runs/pretrain_mlp", "--set", "max_tiles=1"],
    )
    export, changed = "tools/convert_to_official.py", control / "runs/pretrain_mlp"
    chain.run(
        "export both",
        [export, WARM_UP, OUT / "runs/pretrain_mlp", warm],
        [export, changed / Path(WARM_UP).name, changed, control / "pretrain_mlp"],
    )
    train[1] = FINE_TUNE
    chain.run(
        "fine-tune projector and LLM, and those of the control",
        [*train, OUT / "runs/finetune_full"],
        [*train, control / "runs/finetune_full", "--set", "max_tiles=1", f"base={control / 'pretrain_mlp'}"],
    )
    chain.run("export the model", [export, FINE_TUNE, OUT / "runs/finetune_full", model])

    test = data / "test.jsonl"
    trained, exported, controls = (OUT / f"answers_{name}.json" for name in ("trained", "exported", "control"))
    ask = ["-m", "xtuner_plugins.toy.evaluate", OUT / "runs/finetune_full", test, images, "--out", trained]
    one_tile = ["--modes", "one tile", "--out", controls]
    ask_control = [*ask[:2], control / "runs/finetune_full", test, images, *one_tile]
    clean = ["-I", CLEAN_PROCESS, root / model, root / test, root / images, root / exported]
    chain.run("answer held-out questions: trained model, export in a clean process, control", ask, clean, ask_control)

    questions = evaluate.read_questions(root / test)
    answers, again, alone = (json.loads((root / path).read_text("utf-8")) for path in (trained, exported, controls))
    from xtuner_plugins.engine.hooks.losses_png import draw_losses

    runs = {"projector warm-up": out / "runs/pretrain_mlp", "fine-tuning": out / "runs/finetune_full"}
    draw_losses(runs, out / "losses.png")
    return chain.keep(summarize(questions, answers, again, alone["one tile"]))


def summarize(questions: list[dict], answers: dict, again: dict, control: dict) -> dict:
    """Accuracies by kind and mode, the number of the export's answers that differ, and the table as text."""
    shown = {**answers, CONTROL: control}

    def share(mode: str) -> float:
        rows = evaluate.score(questions, shown[mode])
        found = [rows[kind] for kind in RESOLUTION_KINDS if kind in rows]
        return sum(right for right, _ in found) / max(1, sum(asked for _, asked in found))

    modes = {"tiling": "tiling", "one_tile": "one tile", "control": CONTROL}
    shares = {f"resolution_{name}": share(mode) for name, mode in modes.items()}
    pairs = [(answer, again[mode].get(q)) for mode, given in answers.items() for q, answer in given.items()]
    counts = {"num_answers": len(pairs), "num_answers_that_differ": sum(one != other for one, other in pairs)}
    return {**evaluate.summary(questions, shown, RESOLUTION_KINDS), **shares, **counts}


def verdict(result: dict) -> list[tuple[bool, str]]:
    """`(reached, sentence)` for each goal of the chain."""
    tiling, one_tile, control = (result[f"resolution_{way}"] for way in ("tiling", "one_tile", "control"))
    differ, total = result["num_answers_that_differ"], result["num_answers"]
    return [
        (tiling >= WANTED_ACCURACY, f"questions that need the resolution, with tiling: {tiling:.1%} (wanted: 90 %)"),
        (tiling - one_tile >= WANTED_GAP, f"points lost with one tile: {100 * (tiling - one_tile):.0f} (wanted: 30)"),
        (tiling - control >= WANTED_GAP, f"points lost {CONTROL}: {100 * (tiling - control):.0f} (wanted: 30)"),
        (differ == 0, f"answers in which the export differs from the trained model: {differ} of {total} (wanted: 0)"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 when a command failed or a goal was missed."""
    return run_demo(argv, __doc__, OUT, {FINE_TUNE: RUN_IN_ROOT}, run_chain, verdict)


def run_demo(
    argv: Sequence[str] | None,
    about: str,
    out: Path,
    needed: Mapping[str, str],
    run: Callable[[Chain, float, int], dict],
    goals: Callable[[dict], list[tuple[bool, str]]],
) -> int:
    """The command line of a chain, run in the repository's root; the exit status, 1 where a goal was missed.

    Args:
        argv: Arguments; those of the process when `None`.
        about: For `--help`.
        out: Gets the results; an earlier one is renamed.
        needed: Files that must be there, with what to do otherwise.
        run: Runs a chain with scale and seed.
        goals: `(reached, sentence)` of each; only a whole run must reach them.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of images and steps (below 1: only a trial)")
    parser.add_argument("--seed", type=int, default=0, help="of images, parts and training (default 0)")
    args = parser.parse_args(argv)
    if not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale}: give more than 0 and at most 1")
    quiet_imports()
    root = Path.cwd().resolve()
    try:
        for name, remedy in needed.items():
            if not (root / name).is_file():
                raise StageError(f"{root} has no {name}; {remedy}")
        if earlier := keep_earlier(root / out):
            print(f"The earlier {out} is now {earlier.relative_to(root)}; delete it when you no longer need it.")
        result = run(Chain(root, root / out), args.scale, args.seed)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{result['table']}\n")
    reached = goals(result) if args.scale == 1 else []
    for good, sentence in reached:
        print(("reached   " if good else "NOT REACHED  ") + sentence)
    print(f"\n{result['seconds']['all']:.0f} s in all; {out} has losses.png, results.json, logs/")
    print(f"Talk to the model: python tools/chat.py {out}/model --image IMAGE (some are in {out}/data/images/test)")
    return 0 if all(good for good, _ in reached) else 1


if __name__ == "__main__":
    raise SystemExit(main())
