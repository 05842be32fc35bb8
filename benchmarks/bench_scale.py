"""A run with millions of records: start, plan, memory of the trainer and of its workers, resume in mid-epoch.

    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py [--records 10000000] [--only start plan ...]

A file of that many records repeats a block of 1,000 different ones, with and without images; the block is measured by
the project and its lengths are repeated too, so that the index is what measuring all of it would give. Every step runs
in a process of its own. Memory "of its own" is what no file backs and no other process shares (Private_Dirty).
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from data_inputs import make_base
from PIL import Image

BLOCK = 1000
WORDS = "a an the bus car tree house on in under near red blue small large old new stands waits turns".split()
PACK = {"max_tokens": 8192, "max_tiles": 26}


def make_block(folder: Path) -> list[str]:
    """Lines of 1,000 records, three of four with an image of one of 20 sizes."""
    rng, lines = random.Random(0), []
    (folder / "images").mkdir()
    for number in range(20):
        size = rng.choice([(64, 48), (48, 64), (64, 43), (32, 96), (160, 40)])
        Image.new("RGB", size, (number, 0, 0)).save(folder / "images" / f"{number}.png")
    for number in range(BLOCK):
        words = " ".join(rng.choices(WORDS, k=max(1, round(rng.lognormvariate(1.5, 0.8)))))
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": words}]
        image = {} if number % 4 == 0 else {"image": f"{number % 20}.png"}
        lines.append(json.dumps({**image, "conversations": turns}) + "\n")
    return lines


def prepare(folder: Path, num: int) -> None:
    """File, base and cached lengths."""
    from xtuner_plugins.datasets.plan import lengths

    (folder / "base").mkdir()
    make_base(folder / "base")
    lines = make_block(folder)
    block = "".join(lines).encode()
    with open(folder / "data.jsonl", "wb") as file:
        for _ in range(num // BLOCK):
            file.write(block)
    time.sleep(2.1)  # the hash of a file that was written just now isn't remembered
    start = time.perf_counter()
    from xtuner_plugins.files import get_cache_dir

    dataset = open_dataset(folder)
    print(f"first start: hash and offsets of {num:,} records in {time.perf_counter() - start:.1f} s", flush=True)
    task = dataset.measuring(0)
    rows = task.rows(range(BLOCK))
    assert not rows.pop("complaints")
    arrays = {name: np.tile(array, (num // BLOCK, *[1] * (array.ndim - 1))) for name, array in rows.items()}
    lengths._save(get_cache_dir() / task.key(), arrays, [])


def open_dataset(folder: Path):
    from xtuner_plugins.datasets import MultimodalDataset

    return MultimodalDataset(str(folder / "base"), str(folder / "data.jsonl"), str(folder / "images"))


def open_packs(folder: Path):
    from xtuner_plugins.datasets.samplers import PackBatchSampler, PlanSampler

    return PackBatchSampler(PlanSampler(open_dataset(folder), seed=0), **PACK)


def memory(process: int | str = "self") -> str:
    """Of a process: the peak of all it held, mapped files included; and what it has for itself now."""
    found = dict(line.split(":") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    private = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    dirty = sum(int(line.split()[1]) for line in private if line.startswith("Private_Dirty")) / 1024
    return f"peak {int(found['VmHWM'].split()[0]) / 1024:,.0f} MiB, {dirty:,.0f} of its own now"


def step_libraries(folder: Path) -> str:
    import xtuner_plugins.datasets.samplers  # noqa: F401

    return memory()


def step_start(folder: Path) -> str:
    start = time.perf_counter()
    dataset = open_dataset(folder)
    opened = time.perf_counter() - start
    dataset.layout()
    return f"dataset open in {opened:.2f} s, lengths and tiles in {time.perf_counter() - start - opened:.2f} s"


def step_plan(folder: Path) -> str:
    start = time.perf_counter()
    return f"{len(open_packs(folder)):,} packs in {time.perf_counter() - start:.1f} s"


def step_shuffle(folder: Path) -> str:
    from xtuner_plugins.datasets.samplers import PlanSampler

    start = time.perf_counter()
    sampler = PlanSampler(open_dataset(folder), seed=0)
    next(iter(sampler))
    return f"first sample without packing after {time.perf_counter() - start:.2f} s"


def step_group(folder: Path) -> str:
    from xtuner_plugins.datasets.samplers import PlanSampler

    start = time.perf_counter()
    sampler = PlanSampler(open_dataset(folder), seed=0, group_by="modality")
    next(iter(sampler))
    return f"first sample in groups after {time.perf_counter() - start:.2f} s"


def step_resume(folder: Path) -> str:
    start = time.perf_counter()
    plan = open_packs(folder)
    opened = time.perf_counter() - start
    middle = len(plan) // 2
    plan.seek(0, middle)
    taken = len(plan.taken(0, middle))
    first = next(iter(plan))
    took = time.perf_counter() - start - opened
    return f"plan open in {opened:.2f} s; at pack {middle:,} ({taken:,} samples taken) {took:.2f} s later: {first[:2]}"


def step_workers(folder: Path) -> str:
    from torch.utils.data import DataLoader

    from xtuner_plugins.datasets import collate_packed

    lines = []
    for method in ("fork", "forkserver", "spawn"):
        plan = open_packs(folder)
        loader = DataLoader(
            plan.sampler.dataset,
            batch_sampler=plan,
            num_workers=1,
            collate_fn=collate_packed,
            multiprocessing_context=method,
        )
        start = time.perf_counter()
        batches = iter(loader)
        next(batches)
        took = time.perf_counter() - start
        for _ in range(50):
            next(batches)
        (worker,) = multiprocessing.active_children()
        lines.append(f"{method}: first batch after {took:.1f} s, worker: {memory(worker.pid)}")
        del batches
    return "; ".join(lines)


STEPS = {name.removeprefix("step_"): step for name, step in list(globals().items()) if name.startswith("step_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--folder", type=Path, help="keep inputs here, and use them again (default: temporary)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        said = STEPS[args.step](args.folder)
        print(f"{args.step}: {said} ({memory()})", flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "data.jsonl").exists():
            folder.mkdir(parents=True, exist_ok=True)
            prepare(folder, args.records)
        for step in args.only:
            subprocess.run([sys.executable, __file__, "--step", step, "--folder", str(folder)], check=True)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
