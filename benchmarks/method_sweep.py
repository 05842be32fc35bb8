"""Which learning rate does each method want? LoRA of three ranks beside the whole LLM, on the real model.

Runs after `real_model.py`, with its base, its records and its held-out drawings. Only method and rate of the LLM
differ; the projector learns at 1e-4 everywhere. A run that is done isn't repeated. Writes results.json and a plot.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from real_model import FILES, LEARNING, SHORT  # noqa: E402

from xtuner_plugins.evaluation.results import read_results  # noqa: E402

RATES = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
METHODS = {
    "full": ("finetune_full", ["freeze_llm=False"]),
    **{f"LoRA r={r}": ("finetune_lora", [f"lora_rank={r}", f"lora_alpha={2 * r}"]) for r in (8, 16, 64)},
}
SHARED = [each for each in LEARNING if not each.startswith(("lora_rank", "lora_alpha", "lora_dropout", "lr="))]


def measure(real: Path, out: Path, method: str, rate: float) -> dict:
    """Right answers in percent to the held-out questions, on images together and without one; trains if need be."""
    work_dir, data = out / f"{method.replace(' ', '_')}_{rate:g}", real / "data"
    if not (work_dir / "answers").exists():
        leaf, settings = METHODS[method]
        own = [
            *SHARED,
            *settings,
            "max_tiles=1",
            f"lr={rate}",
            f"base={real / 'base'}",
            f"image_folders={data / 'images'}",
        ]
        own += [f"data_paths=['{data / 'train.jsonl'}', '{data / 'text.jsonl'}']"]
        own += ["lora_dropout=0.0"] if leaf == "finetune_lora" else []
        call([ROOT / "tools/train.py", leaf, "--work-dir", work_dir, "--set", *own], work_dir)
        files = ["--data", *(data / f"{name}.jsonl" for name in FILES), "text", "--images", data / "images"]
        typed = [*SHORT, "--dtype", "bfloat16"]
        call([ROOT / "tools/evaluate.py", work_dir, *files, "--out", work_dir / "answers", *typed], work_dir)
    scores = {name: each["score"] for name, each in read_results(work_dir / "answers")[0]["datasets"].items()}
    images = sum(scores[name] for name in FILES) / len(FILES)
    return {"method": method, "lr": rate, "images": images, "text": scores["text"], **scores}


def call(command: Sequence[str | Path], work_dir: Path) -> None:
    """Run a command of this project; what it prints goes to a file beside the run."""
    with work_dir.with_suffix(".log").open("a", encoding="utf-8") as log:
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=log, stderr=subprocess.STDOUT)


def plot(rows: Sequence[Mapping], path: Path) -> None:
    """Both scores over the rate, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.4), layout="constrained")
    titles = {"images": "unseen drawings", "text": "text questions"}
    for axis, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for method in METHODS:
            scores = [row[key] for row in rows if row["method"] == method]
            axis.semilogx(RATES, scores, marker="o", label=method)
        axis.set(title=title, xlabel="learning rate", ylabel="right, %", ylim=(0, 100))
    axis.legend()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, nargs="?", default=ROOT / "work_dirs/realmodel/seed-0")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs/methods", help="default work_dirs/methods")
    args = parser.parse_args(argv)
    real, out = args.real.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for rate in RATES:
        for method in METHODS:
            rows.append(measure(real, out, method, rate))
            print(json.dumps(rows[-1]), flush=True)
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, out / "methods.png")


if __name__ == "__main__":
    main()
