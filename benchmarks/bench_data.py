"""The data side beside its peers, on the same work in one run: ratios with min / median / max of several rounds.

    OMP_NUM_THREADS=1 python benchmarks/bench_data.py [images loader tokens start packing] [--rounds 3]

Peers: for images the published path (Pillow open, grid, bicubic resize, crops, ToTensor and Normalize a tile, stack
in float32); for tokens the prompt with its image tokens written out as text, through the tokenizer; for start-up every
record through the tokenizer, one call per record. Photographs are scikit-image's, scaled to the sizes that data has.
"""

import argparse
import json
import multiprocessing
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
from data_inputs import INPUTS, RULE, Published, compare, make_base, real_base
from llava_like import LlavaLike, like_llava_665k
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.datasets.images.tiles import MODES, open_tiles
from xtuner_plugins.datasets.plan.packing import arrange, efficiency, pack_samples
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.samplers import PlanSampler
from xtuner_plugins.datasets.text.conversation import encode
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer


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
            {str(fast): lambda fast=fast, work=work: [open_tiles(path, RULE, fast) for path in work] for fast in MODES},
            args.rounds,
            clock=time.process_time,
        )


class PeerDataset(Dataset):
    def __init__(self, paths: list[str]):
        self.paths, self.published = paths, Published()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.published(self.paths[index])


def bench_loader(folder: Path, args: argparse.Namespace, warm_up: int = 12) -> None:
    """Two workers through the real dataset and collate.

    Samples a second once the processes run and their queues are full, from one batch leaving the loader to the last
    one; and the processors' seconds of all processes, their start included, which a busy machine doesn't change much.
    """
    paths, base = INPUTS[args.inputs](folder), make_base(folder / "base")
    size, num_batches = 4, args.batches
    records = [
        {
            "image": path,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "An image."},
            ],
        }
        for path in (paths * (num_batches * size // len(paths) + 1))[: num_batches * size]
    ]
    random.Random(0).shuffle(records)
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def loader(dataset, num_workers, collate_fn):
        return DataLoader(dataset, batch_size=size, num_workers=num_workers, collate_fn=collate_fn)

    makers = {"peer": loader(PeerDataset([record["image"] for record in records]), 2, torch.cat)}
    for fast in MODES:
        dataset = MultimodalDataset(base, str(folder / "data.jsonl"), fast_decoding=fast)
        makers[f"{fast}, 2 workers"] = loader(dataset, 2, collate)
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


def bench_tokens(folder: Path, args: argparse.Namespace) -> None:
    """Ids and labels of a sample with 13 tiles."""
    from transformers import AutoTokenizer

    from xtuner_plugins.hub.conversation import get_conv_template

    base = make_base(folder / "base")
    tokenizer, template = TextTokenizer.from_pretrained(base), get_template("internvl2_5")
    hub = AutoTokenizer.from_pretrained(base)
    turns = [
        ("<image>\nWhat stands on the table?", "Two cups and a plate with bread."),
        ("And behind it?", "A window."),
    ]
    raw = {
        "image": "a.jpg",
        "conversations": [
            {"from": role, "value": text} for pair in turns for role, text in zip(("human", "gpt"), pair, strict=True)
        ],
    }

    def peer():
        conversation = get_conv_template("internvl2_5")
        system = conversation.system_template.format(system_message=conversation.system_message) + conversation.sep
        texts = [system]
        for number, turn in enumerate(raw["conversations"]):
            text = turn["value"].replace("<image>", "<img>" + "<IMG_CONTEXT>" * (256 * 13) + "</img>")
            texts.append(conversation.roles[number % 2] + text + conversation.sep)
        ids = [hub(text, add_special_tokens=False).input_ids for text in texts]
        labels = [
            [-100] * len(part) if number % 2 == 0 else [-100] * 3 + part[3:-1] + [-100]
            for number, part in enumerate(ids)
        ]
        return torch.tensor(sum(ids, [])), torch.tensor(sum(labels, []))

    def ours():
        sample = encode(parse_record(raw, "f:1"), template, tokenizer, [13], 256)
        return torch.from_numpy(sample.input_ids), torch.from_numpy(sample.labels)

    assert torch.equal(peer()[0], ours()[0])
    compare(
        "tokens and labels of a sample with 13 tiles (200 times)",
        lambda: [peer() for _ in range(200)],
        {"spliced": lambda: [ours() for _ in range(200)]},
        args.rounds,
    )


def bench_start(folder: Path, args: argparse.Namespace) -> None:
    """Exact lengths of a mixture's texts, second start, and what a worker's memory does over an epoch."""
    base = real_base(args.tokenizer, folder / "base")
    num, texts, mixture = args.records, folder / "texts.jsonl", folder / "mixture.jsonl"
    LlavaLike().write(texts, num)
    peer, peer_busy = record_by_record(base, texts, num)
    cache = folder / "cache"

    def build(path, cache_dir):
        """Seconds on the clock, and of all processes together."""
        os.environ["XTUNER_PLUGINS_CACHE"] = str(cache_dir)
        start, busy = time.perf_counter(), sum(os.times()[:4])
        MultimodalDataset(base, str(path), str(folder)).layout()
        return time.perf_counter() - start, sum(os.times()[:4]) - busy

    first = sorted(build(texts, folder / f"cache{number}") for number in range(args.rounds))
    seconds = [wall for wall, _ in first]
    middle = statistics.median(seconds)
    print(
        f"\nstart, {num:,} records of text ({texts.stat().st_size / 2**20:.0f} MiB): record by record {peer:.1f} s"
        f"\n  first start  {seconds[0]:.2f} / {middle:.2f} / {seconds[-1]:.2f} s = {peer / seconds[-1]:.1f} / "
        f"{peer / middle:.1f} / {peer / seconds[0]:.1f} x; processors: {first[0][1]:.1f} s of all processes, the "
        f"peer's one {peer_busy:.1f} s = {peer_busy / first[0][1]:.1f} x a core",
        flush=True,
    )
    texts.unlink()
    for number in range(200):
        Image.new("RGB", (64 + number % 9, 48)).save(folder / f"{number}.png")
    LlavaLike([f"{number}.png" for number in range(200)]).write(mixture, num)
    took, busy = build(mixture, cache)
    second = sorted(build(mixture, cache)[0] for _ in range(max(3, args.rounds)))
    print(
        f"  with images, headers read   {took:.1f} s ({busy:.1f} s of all processes together); 4 million would take "
        f"{(took - 2) * 4e6 / num + 2:.0f} s (linear but for 2 s)\n  second start                  {second[0]:.3f} / "
        f"{statistics.median(second):.3f} / {second[-1]:.3f} s, most of it the tokenizer's own loading",
        flush=True,
    )
    worker_memory(base, mixture, folder, cache, num)


def record_by_record(base: str, path: Path, num: int, part: int = 4000) -> tuple[float, float]:
    """Seconds, on the clock and of the processor, for the tokenizer to take every record, one call per record; measured
    on records all over the file."""
    from transformers import AutoTokenizer

    hub = AutoTokenizer.from_pretrained(base)
    with open(path, encoding="utf-8") as file:
        lines = [line for number, line in enumerate(file) if number % max(1, num // part) == 0]
    start, busy = time.perf_counter(), time.process_time()
    for line in lines:
        turns = [turn["value"] for turn in json.loads(line)["conversations"]]
        sum(map(len, hub(turns, add_special_tokens=False).input_ids))
    times = num / len(lines)
    return (time.perf_counter() - start) * times, (time.process_time() - busy) * times


def worker_memory(base: str, path: Path, folder: Path, cache: Path, num: int) -> None:
    """Private memory of a DataLoader's worker, after its first batch and after it has read every record."""
    config = json.loads((Path(base) / "config.json").read_text())
    (Path(base) / "config.json").write_text(json.dumps(config | {"force_image_size": 28}))  # pixels aren't the question
    dataset = MultimodalDataset(base, str(path), str(folder))
    sampler = PlanSampler(dataset, seed=0)
    loader = DataLoader(dataset, batch_size=16, num_workers=1, sampler=sampler, collate_fn=collate)
    start, batches = time.perf_counter(), iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    before = _private_mib(worker.pid)
    for number, _ in enumerate(batches, 2):
        if number == len(loader) - 1:  # the worker ends with the last one
            after = _private_mib(worker.pid)
    print(
        f"  private memory of a worker: {before:.0f} MiB after its first batch, {after:.0f} after all {num:,} records: "
        f"{(after - before) / num * 1e5:.1f} MiB a 100,000 ({time.perf_counter() - start:.0f} s)"
    )


def _private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


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
                f"{figures['samples_per_pack']:.2f} samples per pack, tile imbalance over 8 ranks "
                f"{figures['tile_imbalance']:.3f}, {took:.2f} s; useful tokens of a step "
                f"{1 - figures['padded']:.1%} of the budget, random batches of {size}: {random_useful:.1%} "
                f"({(1 - figures['padded']) / random_useful:.2f} x)"
            )


BENCHES = {
    "images": bench_images,
    "loader": bench_loader,
    "tokens": bench_tokens,
    "start": bench_start,
    "packing": bench_packing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=90, help="loader: how many (default: %(default)s)")
    parser.add_argument(
        "--inputs", choices=INPUTS, default="jpegs", help="images, loader: which images (default: %(default)s)"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="start: a directory with a fast tokenizer (default: the toy's)"
    )
    parser.add_argument("--records", type=int, default=40_000, help="start: how many (default: %(default)s)")
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
