r"""Flash on the toy world: how many image tokens the router saves, and what that costs in right answers.

    make quickstart
    python benchmarks/flash_toy.py             # both stages on the quick start's model; --lora trains the LLM, too

    python benchmarks/real_model.py --grid 2 --steps 120 --asked 400
    python benchmarks/flash_toy.py --start work_dirs/realmodel/seed-0-grid-2 --max-tiles 4 --batch-size 8 \
        --steps 100 40 --rate 2e-5 --thresholds 0.3/0 0.2/0.5 --dtype bfloat16

Builds a Flash base of the run's export, trains both stages with the recipes' commands, and asks the held-out
questions: by the router, as many tiles at random, all, and with --lora, without which nothing else trains than what
compresses, nothing compressed. Results go to work_dirs/flash_toy.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from xtuner_plugins.hub import modeling_flash
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.toy.evaluate import answer, is_right, read_questions

START, OUT = Path("work_dirs/quickstart"), Path("work_dirs/flash_toy")  # --start and --out change them
LORA = ["model.llm_lora={'r': 16, 'lora_alpha': 32}", "optim_wrapper.paramwise_cfg.part_lr.lora=1e-4"]


def run(*words: object) -> None:
    """Runs a command of the project; ends where it fails."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def train(args: argparse.Namespace, stage: str, base: Path, steps: int, rate: float, *options: str) -> Path:
    """Trains a stage on the data of the run and exports it; returns the export."""
    data, work_dir, out = args.start / "data", args.out / stage, args.out / f"{stage}-export"
    settings = [f"base={base}", f"data_paths={data}/train.jsonl", f"image_folders={data}/images", f"lr={rate}"]
    settings += [f"max_tiles={args.max_tiles}", f"batch_size={args.batch_size}", f"max_steps={steps}"]
    settings += ["accumulative_counts=1", "num_workers=0", "max_epochs=50", "save_steps=-1"]
    words = ["--set", *settings, "--cfg-options", "model.llm_quantization=None", f"model.dtype={args.dtype}", *options]
    run("tools/train.py", stage, "--work-dir", work_dir, *words)
    written = ["--force", "--dtype", "float32"]
    run("tools/convert_to_official.py", stage, work_dir, out, *written)
    return out


def ask(session, questions: list[dict], images: Path, choose) -> tuple[list[bool], float]:
    """Whether each answer is right, and the share of the image tokens that the model read."""
    counts, original = [0, 0], modeling_flash.choose_tiles

    def counted(probabilities, *limits):
        chosen = choose(original, probabilities, *limits)
        counts[0] += int(chosen.sum())
        counts[1] += len(chosen)
        return chosen

    modeling_flash.choose_tiles = counted
    try:
        given = answer(session, questions, images, ["tiling"])["tiling"]
    finally:
        modeling_flash.choose_tiles = original
    right = [is_right(given[each["id"]], each["answer"]) for each in questions]
    return right, 1 - 0.75 * counts[0] / max(1, counts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=START, help=f"a run with model/ and data/ (default {START})")
    parser.add_argument("--out", type=Path, default=OUT, help=f"(default {OUT})")
    parser.add_argument("--max-tiles", type=int, default=6, help="of an image (default 6)")
    parser.add_argument("--batch-size", type=int, default=16, help="of a step (default 16)")
    parser.add_argument("--steps", type=int, nargs=2, default=[1500, 60], help="of both stages (default 1500 60)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of stage 1 (default 1e-3)")
    parser.add_argument("--dtype", default="float32", help="in which both train and answer (default float32)")
    parser.add_argument("--lora", action="store_true", help="stage 1 trains the LLM by LoRA, too, not mlp2 alone")
    told = "relative and absolute thresholds to try (default 0.3/0.5)"
    parser.add_argument("--thresholds", nargs="+", default=["0.3/0.5"], help=told)
    args = parser.parse_args()
    model, base, images = args.start / "model", args.out / "base", args.start / "data/images"
    parts = [f"--{part}={model}" for part in ("vision", "llm", "projector")]
    most = f"--max-tiles={args.max_tiles}"
    run("tools/build_base_model.py", "--flash", *parts, f"--out={base}", most, "--dtype=float32", "--force")
    adapters = LORA if args.lora else []
    first = train(args, "flash_consistency", base, args.steps[0], args.rate, *adapters)
    second = train(args, "flash_router", first, args.steps[1], 1e-3, "model.exact_labels=True")

    questions = read_questions(args.start / "data/test.jsonl")
    rng, session = torch.Generator().manual_seed(0), open_session(second, device="cpu", dtype=args.dtype)
    settings = session.model.config

    def at_random(original, probabilities, *limits):
        return original(probabilities, *limits)[torch.randperm(len(probabilities), generator=rng)]

    none = {"none": lambda original, probabilities, *_: torch.zeros(len(probabilities), dtype=torch.bool)}
    ways = none if args.lora else {}
    for pair in args.thresholds:
        ways[f"router, {pair}"] = lambda original, *rest: original(*rest)
        ways[f"at random, {pair}"] = at_random
    ways["all"] = lambda original, probabilities, *_: torch.ones(len(probabilities), dtype=torch.bool)
    whole = open_session(model, device="cpu", dtype=args.dtype)
    before, _ = ask(whole, questions, images, none["none"])
    rows = {"the model before": {"tokens": 1.0, "right": sum(before) / len(before)}}
    print(f"the model before: right {rows['the model before']['right']:.1%}", flush=True)
    for name, choose in ways.items():
        if ", " in name:
            pair = name.split(", ")[1].split("/")
            settings.flash_relative_threshold, settings.flash_absolute_threshold = map(float, pair)
        right, tokens = ask(session, questions, images, choose)
        rows[name] = {"tokens": tokens, "right": sum(right) / len(right), "difference": difference(before, right)}
        print(
            f"{name:18} tokens {tokens:6.1%}  right {rows[name]['right']:6.1%}  {rows[name]['difference']}", flush=True
        )
    result = json.dumps({**vars(args), "rows": rows}, indent=2, default=str)
    (args.out / "results.json").write_text(f"{result}\n", encoding="utf-8")


def difference(before: list[bool], after: list[bool]) -> str:
    """Points of the paired difference with half its 95 % interval."""
    gaps = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    return f"{100 * gaps.mean():+.1f} ({196 * gaps.std() / len(gaps) ** 0.5:.1f})"


if __name__ == "__main__":
    main()
