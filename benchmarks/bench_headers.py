"""First exact lengths of records with an image each: headers read here, and through Pillow.

    OMP_NUM_THREADS=1 python benchmarks/bench_headers.py [--records 100000] [--files 5000] [--rounds 3]

The records are those of `llava_like.LlavaLike` (ten turns on average, 94 of 100 with an image) about generated images:
JPEG of 640x480 with quality 75, and a mixture like COCO's with every fifth file a PNG and every seventh turned by EXIF.
`Pillow` opens every image with Pillow and resolves links for each, as this project did before 2026-11-23.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from data_inputs import real_base
from llava_like import LlavaLike
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.images import media
from xtuner_plugins.datasets.images.media import ImageFolder, image_size

SIZES = [(640, 480), (480, 640), (640, 427), (500, 375), (612, 612)]


def make_images(folder: Path, num: int, mixed: bool) -> list[str]:
    """Names of generated images, smooth as photographs are."""
    rng, names = np.random.default_rng(0), []
    for number in range(num):
        pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
        image = Image.fromarray(pixels).resize(SIZES[number % 5 if mixed else 0], Image.Resampling.BILINEAR)
        name = f"{number % 50:02}/{number:06}.{'png' if mixed and number % 5 == 0 else 'jpg'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if mixed and number % 7 == 0:
            exif[media.ORIENTATION_TAG] = 6
        image.save(folder / name, quality=75, exif=exif)
        names.append(name)
    return names


@contextmanager
def through_pillow():
    """Let Pillow open every image, and follow the links of each path."""

    def holds(self, path):
        return os.path.realpath(path).startswith(self._real)

    with (
        mock.patch.object(media, "read_plain_size", lambda path: None),
        mock.patch.object(ImageFolder, "_holds", holds),
    ):
        yield


def sizes_of(folder: Path, names: list[str]) -> float:
    """Processor seconds for the size of every image once."""
    images, start = ImageFolder(folder), time.process_time()
    for name in names:
        image_size(images.resolve(name))
    return time.process_time() - start


def measure(base: str, path: Path, folder: Path, **settings) -> tuple[float, float]:
    """Seconds on the clock and of all processes for the lengths of a file."""
    with tempfile.TemporaryDirectory() as cache:
        dataset = MultimodalDataset(base, str(path), str(folder), cache_dir=cache, dataset_settings=[settings])
        start, busy = time.perf_counter(), sum(os.times()[:4])
        dataset.layout()
        return time.perf_counter() - start, sum(os.times()[:4]) - busy


def show(name: str, seconds: list[float], peer: list[float], num: int, unit: str) -> None:
    ratios = sorted(theirs / ours for theirs, ours in zip(peer, seconds, strict=True))
    each = sorted(second / num * 1e3 for second in seconds)
    print(
        f"  {name:<28} {each[0]:.4f} / {statistics.median(each):.4f} / {each[-1]:.4f} ms {unit}   "
        f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f} x",
        flush=True,
    )


def bench(folder: Path, args: argparse.Namespace, mixed: bool) -> None:
    base = real_base(args.tokenizer, folder / "base")
    images, text = folder / "images", folder / "mixture.jsonl"
    names = make_images(images, args.files, mixed)
    LlavaLike(names).write(text, args.records)
    kind = "COCO's sizes, JPEG and PNG, some turned" if mixed else "JPEG 640x480, quality 75"
    print(f"\n{args.records:,} records about {args.files:,} images ({kind})")
    once = {"Pillow": [], "headers": []}
    whole = {"Pillow": [], "headers": []}
    for _ in range(args.rounds):
        with through_pillow():
            once["Pillow"].append(sizes_of(images, names))
            whole["Pillow"].append(measure(base, text, images))
        once["headers"].append(sizes_of(images, names))
        whole["headers"].append(measure(base, text, images))
    for name, seconds in once.items():
        show(f"an image: {name}", seconds, once["Pillow"], len(names), "of a processor")
    for place, unit in enumerate(("a record on the clock", "a record of processors")):
        for name, found in whole.items():
            show(name, [row[place] for row in found], [row[place] for row in whole["Pillow"]], args.records, unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", metavar="DIR", help="a directory with a fast tokenizer (default: the toy's)")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the work already
    for mixed in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "base").mkdir()
            bench(Path(folder), args, mixed)


if __name__ == "__main__":
    main()
