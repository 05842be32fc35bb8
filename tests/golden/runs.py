"""Golden runs: five tiny trainings whose every step is kept, and the comparison with what is kept.

    OMP_NUM_THREADS=1 python -m tests.golden.runs            # run anew, name the first difference of each run
    OMP_NUM_THREADS=1 python -m tests.golden.runs --write    # keep the new numbers; prints the line for CHANGELOG.md

Each run is a training on a toy leaf, with random parts and generated data, in a process forked from one that has
imported everything and computed nothing.
"""

import argparse
import hashlib
import math
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.engine.forked import run_forked
from tests.small_data import write_dataset
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.toy.models import write_random_parts

KEPT = Path(__file__).parent / "kept"
NUM_STEPS = 20
# Between machines, whose sums have another order. Measured against AVX-512: at most 7.1e-7 with AVX2 kernels or two
# threads, where a rate of 3e-3 gave 2.2e-6. Without AVX2 PyTorch draws other weights: the first norm differs by 1e-5.
RELATIVE = 1e-6
EXACT = ("step", "batch", "tokens", "supervised", "tiles")

LOADER, OPTIMIZER, RATES = "train_dataloader", "optim_wrapper.optimizer", "optim_wrapper.paramwise_cfg.part_lr"
PAIRS = {f"{LOADER}.batch_size": 2}
HEAD = "from mmengine.config import read_base\nwith read_base():\n"
# Leaf and own options of each run. Together they reach most of what a training is made of.
RUNS = {
    "pretrain": ("toy_pretrain_mlp", {**PAIRS, f"{OPTIMIZER}.lr": 3e-4}),
    "packed": (
        "toy_finetune_packed",
        {
            "model.freeze_visual_encoder": False,
            f"{LOADER}.batch_sampler.max_tokens": 256,
            f"{OPTIMIZER}.lr": 3e-4,
            f"{OPTIMIZER}.weight_decay": 0.05,
            f"{RATES}.visual_encoder": 3e-5,
        },
    ),
    "lora": ("toy_finetune_lora", {**PAIRS, "model.llm_lora.lora_dropout": 0.1, f"{RATES}.projector": 2e-4}),
    "qlora": ("toy_finetune_qlora", PAIRS),
    "preference": ("toy_finetune_mpo_full", PAIRS),
}


def arguments(folder: Path, name: str, config: Path, work_dir: Path) -> list[str]:
    """What a start is given: 20 steps of two micro-batches on what `prepare` has written, no workers."""
    dataset, data = f"{LOADER}.dataset", "pairs" if name == "preference" else "train"
    given = {
        "model.base": folder / "base",
        f"{dataset}.data_paths": f"[{folder / f'data/{data}.jsonl'}]",
        f"{dataset}.image_folders": f"[{folder / 'data/images'}]",
        f"{LOADER}.num_workers": 0,
        f"{LOADER}.persistent_workers": False,
        "optim_wrapper.accumulative_counts": 2,
        "train_cfg.max_epochs": 100,
        "train_cfg.max_iters": NUM_STEPS,
        "param_scheduler.warmup_ratio": 0.1,
        **RUNS[name][1],
    }
    pairs = [f"{key}={value}" for key, value in given.items()]
    return [str(config), "--work-dir", str(work_dir), "--seed", "7", "--cfg-options", *pairs]


def prepare(folder: Path) -> None:
    """Writes ``base`` and ``data``."""
    vision, llm = write_random_parts(folder / "parts")
    build_base(vision, llm, folder / "base", dtype="float32")
    write_dataset(folder / "data", num_samples=48)


def train(folder: Path, name: str, *words: str) -> None:
    """Trains, and writes ``NAME.tsv``; ``words`` follow the other options.

    Raises:
        RuntimeError: The run failed; the message ends with what it printed.
    """
    config, work_dir, out = folder / f"{name}.py", folder / name, folder / f"{name}.tsv"
    recorder = f"default_hooks.recorder = dict(type='tests.golden.recorder.StepRecorder', out={str(out)!r})"
    config.write_text(f"{HEAD}    from xtp_configs.toy.{RUNS[name][0]} import *\n{recorder}\n")
    run = run_forked([*arguments(folder, name, config, work_dir), *words], dict(os.environ), work_dir)
    if not run.ok:
        raise RuntimeError(f"{name} failed:\n{run.output[-3000:]}")


def read(text: str) -> tuple[str, list[dict[str, str]]]:
    """The machine and the rows of a table."""
    machine, header, *rows = text.splitlines()
    return machine, [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


def difference(kept: str, new: str) -> str | None:
    """The first step and column in which two tables differ, or None.

    On one machine everything is equal to the last digit; on two, rates, losses and norms are equal to 1e-6.
    """
    (machine, before), (other, after) = read(kept), read(new)
    for old, now in zip(before, after, strict=False):
        for column in old:
            alike = near if machine != other and column not in EXACT else str.__eq__
            if not alike(old[column], now[column]):
                return f"step {old['step']}, {column}: {now[column]}, kept {old[column]}"
    return None if len(before) == len(after) else f"{len(after)} steps, kept {len(before)}"


def near(old: str, now: str) -> bool:
    """Whether numbers, or rates with a stroke between them, are equal to `RELATIVE`."""
    before, after = (list(map(float, text.split("/"))) for text in (old, now))
    return len(before) == len(after) and all(map(partial(math.isclose, rel_tol=RELATIVE), before, after))


def revision() -> str:
    """A word that changes with the kept numbers; CHANGELOG.md says of each why they are as they are."""
    tables = b"".join((KEPT / f"{name}.tsv").read_bytes() for name in sorted(RUNS))
    return f"golden-{hashlib.sha256(tables).hexdigest()[:8]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the new numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        folder, is_other = Path(name), False
        prepare(folder)
        for run in RUNS:
            train(folder, run)
            kept, new = KEPT / f"{run}.tsv", (folder / f"{run}.tsv").read_text()
            found = difference(kept.read_text(), new) if kept.exists() else "nothing is kept yet"
            print(f"{run}: {found or 'equal'}")
            is_other |= found is not None
            if args.write:
                kept.write_text(new)
    if args.write:
        print(f"name {revision()} in CHANGELOG.md, and say why the numbers changed")
        return 0
    return int(is_other)


if __name__ == "__main__":
    sys.exit(main())
