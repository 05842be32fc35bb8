"""The route `nvjpeg` beside the route `device`: how many values of the tiles differ, and images per second.

    python benchmarks/bench_nvjpeg.py [--inputs others] [--rounds 5]
    python benchmarks/bench_nvjpeg.py --device cpu             # without a GPU: the pixels are equal

`device` sends the decoded image, and its time is that of copying, resizing and cutting; `nvjpeg` sends the file, and
decoding is added. What the worker does is left out (`benchmarks/bench_data.py images` counts it).
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from data_inputs import INPUTS, RULE
from PIL import Image

from xtuner_plugins.datasets.images.media import MAX_PIXELS
from xtuner_plugins.datasets.images.routes import Allowance, TileSource, open_tiles
from xtuner_plugins.datasets.images.tiling import UncutImage
from xtuner_plugins.models.device_decode import is_encoded
from xtuner_plugins.models.device_resize import cut_images


def whole(path: str) -> TileSource:
    """An image as the route `device` sends it; an allowance without end lets larger ones go whole, too."""
    allowance = Allowance()
    allowance.left = 1 << 60
    return open_tiles(path, RULE, "device", MAX_PIXELS, allowance)


def cut(sent: list[TileSource], device: torch.device) -> torch.Tensor:
    """The tiles of images, as `TilePreprocessor` has them cut."""
    uncut, first = [], 0
    for source in sent:
        uncut.append(UncutImage(source.grid, first, *source.size))
        first += source.grid.num_tiles
    images = [source.image if is_encoded(source.image) else source.image.to(device) for source in sent]
    size = RULE.tile_size
    tiles = cut_images(torch.empty(0, 3, size, size, dtype=torch.uint8, device=device), images, uncut)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return tiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--inputs", choices=INPUTS, default="jpegs", help="which images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA GPU here; --device cpu compares the routes on a CPU", file=sys.stderr)
        return 2
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        paths = [path for path in INPUTS[args.inputs](Path(folder)) if path.endswith(".jpg")]
        encoded = {path: open_tiles(path, RULE, "nvjpeg", MAX_PIXELS) for path in paths}
        encoded = {path: source for path, source in encoded.items() if is_encoded(source.image)}
        decoded = {path: whole(path) for path in encoded}
        for path in encoded:
            difference = (cut([encoded[path]], device).int() - cut([decoded[path]], device).int()).abs()
            with Image.open(path) as image:
                size = "x".join(map(str, image.size))
            print(
                f"{Path(path).name:<16} {size:>9}: {(difference > 0).float().mean():.2%} of values differ, "
                f"{(difference > 1).float().mean():.3%} by more than one level, at most {difference.max()}"
            )
        seconds = {"device": [], "nvjpeg": []}
        for _ in range(args.rounds + 1):  # the first warms up
            for route, sent in (("device", decoded), ("nvjpeg", encoded)):
                start = time.perf_counter()
                cut(list(sent.values()), device)
                seconds[route].append(time.perf_counter() - start)
    for route, sent in (("device", decoded), ("nvjpeg", encoded)):
        rate = len(sent) / statistics.median(seconds[route][1:])
        bytes_ = sum(source.image.numel() for source in sent.values())
        print(f"{route}: {rate:.1f} images per second, {bytes_ / 2**20:.1f} MiB sent for {len(sent)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
