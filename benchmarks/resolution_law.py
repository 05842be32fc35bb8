"""Reading against text size and tiles: how many pixels a stroke needs after an image was resized to its tiles.

    make quickstart
    python benchmarks/resolution_law.py        # trains a reader for minutes, writes docs/images/resolution.png

The quick start's encoder learns on, with a linear head, to tell the digit in each cell of a tile (of one image token),
at heights of 3 to 20 px. Then it reads pages with one digit of 4 to 120 px, cut with limits of 1 to 24 tiles. What
counts should be the width of a stroke in its tile alone: the sampling theorem wants two samples in a period, which is a
stroke and a gap, so one pixel per stroke. The language model has no part in it, except in what tiles cost.
"""

import argparse
import json
import random
import statistics
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import Turn, normalize
from xtuner_plugins.toy.cells import SIDE
from xtuner_plugins.toy.images import CELL, FONTS, JITTER, TILE, _background, font_file
from xtuner_plugins.toy.pretrain import _cells, _optimize

OUT = Path("work_dirs/resolution_law.json")
GRIDS = {1: (1, 1), 2: (2, 1), 6: (3, 2), 12: (4, 3), 24: (6, 4)}  # tile limit: columns, rows
HEIGHTS = (4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 57, 68, 80, 96, 114)  # px, of a digit on its page
SMALLEST, LARGEST = 3, 20  # px, of a digit in its tile, in training; pages with larger ones are not asked about
WIDTH, INK = 672, (24, 24, 28)  # px of a page; RGB of a digit


def page_size(limit: int) -> tuple[int, int]:
    """Pixels of a page, of the shape of the tiles that the limit gives it: 4:3 for 12 tiles, 3:2 for the others."""
    return WIDTH, 504 if limit == 12 else 448


def scales(limit: int) -> list[float]:
    """What resizing to the tiles leaves of a page's width and height."""
    return [tiles * TILE / side for tiles, side in zip(GRIDS[limit], page_size(limit), strict=True)]


@cache
def stroke() -> float:
    """Width of a digit's strokes as a share of its height: the median run of ink along its rows and columns."""
    runs = []
    for font in FONTS:
        for digit in "0123456789":
            ink = np.asarray(digit_mask(digit, font, 700)) > 127
            for lines in (ink, ink.T):
                edges = np.diff(np.pad(lines.astype(np.int8), ((0, 0), (1, 1))), axis=1)
                lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
                runs += [length for length in lengths if length < 350]  # longer ones run along a stroke
    return float(np.median(runs)) / 700


@cache
def digit_mask(digit: str, font: str, height: int) -> Image.Image:
    """A digit as high as asked, antialiased: drawn four times as large, then shrunk."""
    typeface = ImageFont.truetype(str(font_file(font)), 6 * height)
    left, top, right, bottom = typeface.getbbox(digit)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), digit, fill=255, font=typeface)
    return mask.resize((max(1, round(mask.width * height / mask.height)), height), Image.Resampling.BOX)


def tile(rng: random.Random, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A tile uint8 [3, 112, 112] with ten digits, and the digit of each cell [16], 10 where there is none."""
    image, labels = _background(rng, TILE, TILE), torch.full((SIDE * SIDE,), 10)
    for cell in rng.sample(range(SIDE * SIDE), 10):
        height, digit = round(smallest * (LARGEST / smallest) ** rng.random()), rng.randrange(10)
        mask = digit_mask(str(digit), rng.choice(FONTS), 4 * height)
        width = max(1, round(mask.width * rng.uniform(0.17, 0.25)))  # one and two tiles make digits narrower
        mask = mask.resize((width, height), Image.Resampling.BICUBIC)
        middle = [CELL * at + CELL // 2 + rng.randint(-JITTER, JITTER) for at in (cell % SIDE, cell // SIDE)]
        image.paste(INK, (middle[0] - width // 2, middle[1] - height // 2), mask)
        labels[cell] = digit
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), labels


def train_reader(encoder: torch.nn.Module, steps: int) -> torch.nn.Module:
    """Trains the encoder and a head, which it returns; large digits first, the smallest from half of the steps on."""
    rng = random.Random("tiles")
    head = torch.nn.Sequential(torch.nn.LayerNorm(384), torch.nn.Linear(384, 11))

    def loss_of(progress: float) -> tuple[torch.Tensor, float]:
        smallest = 14 * (SMALLEST / 14) ** min(1, 2 * progress)
        pixels, labels = (torch.stack(part) for part in zip(*(tile(rng, smallest) for _ in range(32)), strict=True))
        logits, digits = head(_cells(encoder, normalize(pixels))), labels < 10
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return loss, (logits.argmax(-1)[digits] == labels[digits]).float().mean().item()

    _optimize([*encoder.parameters(), *head.parameters()], loss_of, steps, 2e-3, "reader")
    return head


def page(rng: random.Random, height: int, limit: int) -> tuple[Image.Image, int]:
    """A page with one digit, which resizing puts into one cell of a tile, and the digit."""
    image, digit = _background(rng, *page_size(limit)), rng.randrange(10)
    mask, corner = digit_mask(str(digit), rng.choice(FONTS), height), []
    for size, share, length in zip(image.size, scales(limit), mask.size, strict=True):
        middle = rng.randrange(round(size * share) // CELL) * CELL + CELL // 2 + rng.randint(-JITTER, JITTER)
        corner.append(round(middle / share - length / 2))
    image.paste(INK, tuple(corner), mask)
    return image, digit


@torch.no_grad()
def read(encoder: torch.nn.Module, head: torch.nn.Module, image: Image.Image, limit: int) -> int:
    """The likeliest digit of the cell that is least likely to be empty."""
    cut = DynamicTiling(max_tiles=limit, tile_size=TILE)
    assert cut.grid(*image.size)[:2] == GRIDS[limit]
    shares = head(_cells(encoder, normalize(cut(image)))).softmax(-1).flatten(0, 1)
    return int(shares[shares[:, 10].argmin(), :10].argmax())


def measure(encoder: torch.nn.Module, head: torch.nn.Module, pages: int) -> list[dict]:
    """Share of held-out pages that are read, for each tile limit and height."""
    found = []
    for limit in GRIDS:
        for height in (height for height in HEIGHTS if 2 <= height * min(scales(limit)) <= LARGEST):
            rng = random.Random(f"test-{limit}-{height}")
            drawn = [page(rng, height, limit) for _ in range(pages)]
            right = sum(read(encoder, head, image, limit) == digit for image, digit in drawn) / pages
            width = round(height * min(scales(limit)) * stroke(), 3)
            found.append({"limit": limit, "height": height, "stroke": width, "right": right})
            print(found[-1], flush=True)
    return found


def costs(session) -> dict[int, tuple[int, float]]:
    """Prompt tokens and seconds until the first token of the quick start's own model, for each tile limit."""
    found = {}
    for limit in GRIDS:
        turns, seconds = [Turn("What number is on the sign?", [page(random.Random(0), 40, limit)[0]])], []
        for _ in range(10):
            begin = time.perf_counter()
            next(session.reply(turns, max_tiles=limit, max_new_tokens=1), None)
            seconds.append(time.perf_counter() - begin)
        found[limit] = len(session.prompt_ids(turns, max_tiles=limit)), statistics.median(seconds)
        print(f"{limit:2} tiles: {found[limit][0]} tokens, {found[limit][1]:.3f} s", flush=True)
    return found


def draw(found: list[dict], path: Path) -> None:
    """Left a curve for each limit over the digits' height on the page; right the same points over pixels per stroke."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for limit, color in zip(GRIDS, ("#b83224", "#d98a1f", "#3a8f3f", "#2463b8", "#5b3a8f"), strict=True):
        rows = [row for row in found if row["limit"] == limit]
        accuracy, label = [100 * row["right"] for row in rows], f"{limit} tile{'s' if limit > 1 else ''}"
        left.plot([row["height"] for row in rows], accuracy, "o-", color=color, label=label, markersize=4)
        left.axvline(1 / stroke() / min(scales(limit)), color=color, linestyle=":", linewidth=1)
        right.plot([row["stroke"] for row in rows], accuracy, "o", color=color, markersize=4)
    right.axvline(1, color="black", linestyle=":", linewidth=1)
    right.annotate("theory: 1 pixel per stroke", (1.05, 3), fontsize=8)
    left.set(xlabel=f"height of a digit on a page of {WIDTH} px (px)", ylabel="read correctly (%)", ylim=(0, 103))
    right.set(xlabel="pixels per stroke after resizing to the tiles")
    for axes, ticks in ((left, (4, 8, 16, 32, 64)), (right, (0.5, 1, 2, 4))):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.axhline(10, color="gray", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="work_dirs/quickstart/model", help="the quick start's")
    parser.add_argument("--steps", type=int, default=600, help="of training the reader (default 600)")
    parser.add_argument("--pages", type=int, default=60, help="for each height and limit (default 60)")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/resolution.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    session = open_session(args.model, device="cpu", dtype="float32")
    cost = costs(session)
    encoder = session.model.vision_model.train().requires_grad_(True)
    found = measure(encoder, train_reader(encoder, args.steps), args.pages)
    OUT.write_text(json.dumps({"stroke": stroke(), "cost": cost, "read": found}, indent=1) + "\n", encoding="utf-8")
    draw(found, args.plot)


if __name__ == "__main__":
    main()
