"""What checking data costs beside decoding alone: the same images, as many processes, processor time.

    OMP_NUM_THREADS=1 python benchmarks/bench_check.py [--records 4000 --per-image 1] [--rounds 3] [--plain]

Decoding alone is `load_image` of each image, once. The check is `check_dataset` with an empty cache: lengths are
measured, images decoded, hashed and looked at, results kept. With `--per-image 10` ten records name each
image, as in instruction data. `--again` also measures a second check, which only compares files. `--memory` prints the
largest private memory of this process, for runs with different `--records`.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from data_inputs import make_base
from PIL import Image

from xtuner_plugins.audit.check import PlainFiles, check_dataset
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.images.media import load_image

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the tool sets it
SIZE = (640, 480)


def write(folder: Path, num_records: int, per_image: int) -> tuple[str, list[str]]:
    """An annotation file, and its images: parts of two photographs, turned, in JPEG at quality 90."""
    from skimage import data

    rng, photos = np.random.default_rng(0), [Image.fromarray(photo) for photo in (data.astronaut(), data.coffee())]
    (folder / "images").mkdir()
    paths = []
    for number in range(-(-num_records // per_image)):
        photo = photos[number % 2]
        side = int(rng.integers(200, min(photo.size)))
        left, top = (int(rng.integers(0, whole - side + 1)) for whole in photo.size)
        image = photo.crop((left, top, left + side, top + side)).resize(SIZE).rotate(int(rng.integers(360)))
        paths.append(str(folder / f"images/{number:06}.jpg"))
        image.save(paths[-1], quality=90)
    with open(folder / "data.jsonl", "w") as file:
        for row in range(num_records):
            question = f"<image>\nWhat is thing {row} in this photograph, and why does it matter?"
            answer = f"It is number {row * 7919 % 100_003}: " + "a word and another one " * (row % 12)
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"image": Path(paths[row // per_image]).name, "conversations": turns}) + "\n")
    return str(folder / "data.jsonl"), paths


def decode(paths: list[str]) -> None:
    for path in paths:
        load_image(path)


def measured(work) -> tuple[float, float]:
    """Processor seconds, with those of processes that ended meanwhile, and seconds."""

    def spent() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before, start = spent(), time.perf_counter()
    work()
    return spent() - before, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--per-image", type=int, default=1, help="records that name each image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="without a model: no tokens")
    parser.add_argument("--again", action="store_true", help="measure a second check, too")
    parser.add_argument("--memory", action="store_true", help="print the largest memory of this process")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, paths = write(folder, args.records, args.per_image)
        (folder / "base").mkdir()
        base = make_base(folder / "base")

        def check(cache: str) -> None:
            os.environ["XTUNER_PLUGINS_CACHE"] = cache
            if args.plain:
                dataset = PlainFiles([data], [str(folder / "images")])
            else:
                dataset = MultimodalDataset(base, [data], str(folder / "images"))
            (report,) = check_dataset(dataset, num_workers=args.workers)
            assert (len(report.images), report.complaints.total()) == (args.records, 0)

        def decode_all() -> None:
            with ProcessPoolExecutor(args.workers) as pool:
                list(pool.map(decode, [paths[first : first + 128] for first in range(0, len(paths), 128)]))

        ratios = []
        for number in range(args.rounds):
            cache = str(folder / f"cache{number}")
            alone, seconds = measured(decode_all)
            print(f"decoding alone: {1e3 * alone / len(paths):.2f} ms of processor time per image, {seconds:.1f} s")
            works = {
                "check": lambda at=cache: check(at),
                **({"again": lambda at=cache: check(at)} if args.again else {}),
            }
            for label, work in works.items():
                spent, seconds = measured(work)
                each = f"{1e3 * spent / args.records:.2f} ms of processor time per record"
                print(f"{label:>14}: {each}, {seconds:.1f} s, {spent / alone:.2f} of decoding alone")
                if label == "check":
                    ratios.append(spent / alone)
        print(f"check / decoding alone: {min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}")
    if args.memory:
        print(f"largest memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
