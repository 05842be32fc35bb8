"""The data side beside its peers, on the same work in one run: ratios with min / median / max of several rounds.

    OMP_NUM_THREADS=1 python benchmarks/bench_data.py [images loader packing] [--rounds 3]

The peer of images and loader is the published path: Pillow open, grid, bicubic resize, crops, ToTensor and Normalize a
tile, stack in float32; that of packing are random batches. Photographs are scikit-image's, scaled to sizes that data
has.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from data_inputs import INPUTS, RULE, Published, compare, like_llava_665k, make_base
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.datasets.images.tiles import open_tiles
from xtuner_plugins.datasets.plan.packing import arrange, efficiency, pack_samples
from xtuner_plugins.ranges import DECODING


def bench_images(folder: Path, args: argparse.Namespace) -> None:
    """From files to what crosses, `again` times over; of the four kinds, each alone."""
    published, again = Published(), 4
    groups = {args.inputs: INPUTS[args.inputs](folder)}
    if args.inputs == "kinds":
        groups = {Path(path).name: [path] for path in groups["kinds"]}
    for name, paths in groups.items():
        work = [path for path in paths for _ in range(again)]
        compare(
            f"images, one core: {name} ({len(paths)} files, {again} times)",
            lambda work=work: [published(path) for path in work],
            {
                str(fast): lambda fast=fast, work=work: [open_tiles(path, RULE, fast) for path in work]
                for fast in DECODING
            },
            args.rounds,
            clock=time.process_time,
        )


def bench_loader(folder: Path, args: argparse.Namespace, warm_up: int = 12) -> None:
    """Two workers through the real dataset and collate.

    Samples a second once the processes run and their queues are full, from one batch leaving the loader to the last
    one; and the processors' seconds of all processes, their start included, which a busy machine doesn't change much.
    """
    paths, base = INPUTS[args.inputs](folder), make_base(folder / "base")
    size, num_batches = 4, args.batches
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An image."}]
    repeated = (paths * (num_batches * size // len(paths) + 1))[: num_batches * size]
    records = [{"image": path, "conversations": turns} for path in repeated]
    random.Random(0).shuffle(records)
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def loader(dataset, collate_fn):
        return DataLoader(dataset, batch_size=size, num_workers=2, collate_fn=collate_fn)

    published = Published()
    peers = [record["image"] for record in records]
    makers = {"peer": loader(peers, lambda paths: torch.cat(list(map(published, paths))))}
    for fast in DECODING:
        dataset = MultimodalDataset(base, str(folder / "data.jsonl"), fast_decoding=fast)
        makers[f"{fast}, 2 workers"] = loader(dataset, collate)
    rates, busy = {name: [] for name in makers}, {name: [] for name in makers}
    for _ in range(args.rounds):
        for name, batches in makers.items():
            before = sum(os.times()[:4])
            for number, _ in enumerate(batches, 1):
                if number == warm_up:
                    start = time.perf_counter()
            rates[name].append((num_batches - warm_up) * size / (time.perf_counter() - start))
            busy[name].append((sum(os.times()[:4]) - before) / len(records))
    print(f"\nloader ({len(records)} samples, batches of {size}; samples per second, steady)")
    for name, found in rates.items():
        ratios = sorted(own / peer for own, peer in zip(found, rates["peer"], strict=True))
        less = sorted(peer / own for own, peer in zip(busy[name], busy["peer"], strict=True))
        print(
            f"  {name:<32} {min(found):6.1f} / {statistics.median(found):6.1f} / {max(found):6.1f}   "
            f"{ratios[0]:6.2f} / {statistics.median(ratios):6.2f} / {ratios[-1]:6.2f} x   processors: "
            f"{statistics.median(busy[name]) * 1e3:5.1f} ms per sample, "
            f"{less[0]:.2f} / {statistics.median(less):.2f} / {less[-1]:.2f} x less"
        )


def bench_packing(folder: Path, args: argparse.Namespace, num_samples: int = 100_000) -> None:
    """Packs of a mixture like LLaVA-665k beside random batches."""
    for max_tiles in (6, 12):
        tokens, tiles = like_llava_665k(num_samples, max_tiles)
        for budget in (8192, 16384):
            start = time.perf_counter()
            packs = pack_samples(np.arange(num_samples), tokens, tiles, max_tokens=budget)
            took = time.perf_counter() - start
            figures = efficiency(arrange(packs, 8, 0), budget, 8)
            order = np.random.default_rng(0).permutation(num_samples)
            size = max(1, int(budget / np.percentile(tokens, 99)))  # a batch that fits the same memory
            padded = tokens[order[: num_samples // size * size]].reshape(-1, size).max(1) * size
            random_useful = tokens.sum() / padded.sum() * min(1.0, padded.mean() / budget)
            print(
                f"\npacking, {max_tiles} tiles, {budget} tokens: {figures['padded']:.2%} empty, "
                f"{figures['samples_per_pack']:.2f} samples per pack, 8 ranks wait "
                f"{figures['waiting']:.2%}, {took:.2f} s; useful tokens of a step "
                f"{1 - figures['padded']:.1%} of the budget, random batches of {size}: {random_useful:.1%} "
                f"({(1 - figures['padded']) / random_useful:.2f} x)"
            )


BENCHES = {"images": bench_images, "loader": bench_loader, "packing": bench_packing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=90, help="loader: how many (default: %(default)s)")
    inputs = "images, loader: which images (default: %(default)s)"
    parser.add_argument("--inputs", choices=INPUTS, default="jpegs", help=inputs)
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the work already
    for name in args.names or BENCHES:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "base").mkdir()
            BENCHES[name](Path(folder), args)


if __name__ == "__main__":
    main()
