"""Does a launch of one's own, on several ranks or GPUs, train as one process does?

    python -m tests.golden.launch "NPROC_PER_NODE=2 python {train} --deepspeed deepspeed_zero2" --ranks 2
    python -m tests.golden.launch "torchrun --nproc_per_node 4 {train} --launcher pytorch" --ranks 4

`{train}` stands for `tools/train.py` with its arguments. Golden runs of five steps in float32 are trained by this
command and by one process here, with as many samples per step, and their losses and gradient norms are compared.
Packs are in another order on other ranks, so the packed run is none of them. The exit status is 1 where a run differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..engine.forked import logged
from .runs import LOADER, RUNS, arguments, prepare

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
FIGURES = {"loss": "losses", "grad_norm": "gradient norms"}
# Relative differences and what they mean; sums of float32 in another order differ by less than the second.
MEANINGS = {0.0: "equal to the last digit", 1e-5: "equal but for the order of sums", float("inf"): "another training"}


def train(launch: str, ranks: int, samples: int, folder: Path, name: str) -> dict[str, list[float]]:
    """The figures of each step of a golden run that a command starts on some ranks; ends here where it fails."""
    changed = {"train_cfg.max_iters": STEPS, f"{LOADER}.batch_size": 1, "default_hooks.logger.interval": 1}
    changed["optim_wrapper.accumulative_counts"] = samples // ranks
    changed |= {"model.llm_lora.lora_dropout": 0.0} if "lora" in name else {}  # dropped are others on each rank
    config, work_dir = ROOT / f"configs/toy/{RUNS[name][0]}.py", Path(tempfile.mkdtemp(dir=folder))
    words = ["tools/train.py", *arguments(folder, name, config, work_dir), *(f"{k}={v}" for k, v in changed.items())]
    command = launch.format(train=" ".join(f"'{word}'" for word in words))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return {title: logged(work_dir, key) for key, title in FIGURES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("launch", help="the command, with {train}")
    parser.add_argument("--ranks", type=int, required=True, help="processes that it starts")
    names = [name for name in RUNS if name != "packed"]
    parser.add_argument("--runs", nargs="+", choices=names, default=names, help="(default: all)")
    args = parser.parse_args()
    samples, differs = args.ranks * -(-4 // args.ranks), False
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        prepare(Path(folder))
        for name in args.runs:
            launches, told = ((f"'{sys.executable}' {{train}}", 1), (args.launch, args.ranks)), []
            alone, launched = (train(*each, samples, Path(folder), name) for each in launches)
            for title, values in launched.items():
                pairs = list(zip(alone[title], values, strict=True))
                gap = max(abs(one - other) / max(abs(one), 1e-12) for one, other in pairs)
                meaning = next(meaning for most, meaning in MEANINGS.items() if gap <= most)
                differs |= gap > 1e-5
                told.append(f"{title} {meaning} (largest difference {gap:.1e})")
            print(f"{name}, {len(pairs)} steps of {samples} samples: {'; '.join(told)}", flush=True)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
