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

from .runs import LOADER, RUNS, options, prepare

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
FIGURES = {"loss": "losses", "grad_norm": "gradient norms"}
# Relative differences and what they mean; sums of float32 in another order differ by less than the second.
MEANINGS = {0.0: "equal to the last digit", 1e-5: "equal but for the order of sums", float("inf"): "another training"}


def words(folder: Path, name: str, ranks: int, samples: int, work_dir: Path) -> list[str]:
    """Arguments of `tools/train.py` for a golden run on some ranks."""
    leaf, own = RUNS[name]
    given = options(folder, name) | own | {"train_cfg.max_iters": STEPS, f"{LOADER}.batch_size": 1}
    given |= {"optim_wrapper.accumulative_counts": samples // ranks, "default_hooks.logger.interval": 1}
    given |= {"model.llm_lora.lora_dropout": 0.0} if "lora" in name else {}  # dropped are others on each rank
    config = ROOT / f"configs/toy/{leaf}.py"
    pairs = [f"{key}={value}" for key, value in given.items()]
    return ["tools/train.py", str(config), "--work-dir", str(work_dir), "--seed", "7", "--cfg-options", *pairs]


def run(command: list[str] | str, work_dir: Path) -> dict[str, list[float]]:
    """Trains; returns the figures of each step.

    Raises:
        RuntimeError: The command fails; the message ends with what it printed.
    """
    from ..engine.parallel_case import logged

    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shared = dict(cwd=ROOT, env=env, capture_output=True, text=True)
    done = subprocess.run(command, shell=isinstance(command, str), **shared)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return {name: logged(work_dir, name) for name in FIGURES}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("launch", help="the command, with {train}")
    parser.add_argument("--ranks", type=int, required=True, help="processes that it starts")
    names = [name for name in RUNS if name != "packed"]
    parser.add_argument("--runs", nargs="+", choices=names, default=names, help="(default: all)")
    args = parser.parse_args(argv)
    samples, differs = args.ranks * -(-4 // args.ranks), False
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        prepare(Path(folder))
        for name in args.runs:
            found = []
            for place, ranks in (("one", 1), ("own", args.ranks)):
                work_dir = Path(folder, f"{name}-{place}")
                train = words(Path(folder), name, ranks, samples, work_dir)
                own = args.launch.format(train=" ".join(f"'{word}'" for word in train))
                found.append(run([sys.executable, *train] if place == "one" else own, work_dir))
            told = []
            for key, title in FIGURES.items():
                pairs = list(zip(*(each[key] for each in found), strict=True))
                gap = max(abs(one - other) / max(abs(one), 1e-12) for one, other in pairs)
                meaning = next(meaning for most, meaning in MEANINGS.items() if gap <= most)
                differs |= gap > 1e-5
                told.append(f"{title} {meaning} (largest difference {gap:.1e})")
            print(f"{name}, {len(pairs)} steps of {samples} samples: {'; '.join(told)}", flush=True)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
