"""Packs beside random batches in training steps of eight ranks, each step as long as its slowest rank.

    OMP_NUM_THREADS=1 python benchmarks/bench_steps.py [--llm 1.5b] [--samples 100000]

1. A small model is timed, forward and backward, on packs and on padded batches drawn from a mixture like LLaVA-665k,
   and on texts without images. It is InternViT-300M (frozen) and Qwen2.5-1.5B or 7B (trained) with every length
   divided by seven: tokens, patches, widths; and a quarter of the layers. So encoder, matrix products and attention
   stand to each other as in the real one, on a CPU.
2. Its seconds are fitted by padded tokens, tiles and squared lengths of what attends to each other; the fit's error is
   printed. Seconds are the processor's.
3. An epoch is planned both ways. A step of eight ranks costs the largest of their times. Random batches have the size
   that a user would give them: as many samples as fit the pack's tokens at the 99th percentile of lengths.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from llava_like import like_llava_665k
from scipy.optimize import nnls

from xtuner_plugins.checkpoints.assembly.base import build_base
from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.datasets.plan.packing import arrange, pack_samples
from xtuner_plugins.models.vlm import VisionLanguageModel
from xtuner_plugins.toy.models import write_random_parts

RANKS = 8
BUDGET = 8192
MAX_LENGTH = 4096
TILE_TOKENS = 36  # a tile of 168 px; a real one has 256
SCALE = 256 / TILE_TOKENS
VISION = {"image_size": 168, "hidden_size": 144, "num_hidden_layers": 6, "intermediate_size": 576}
LLMS = {
    "1.5b": {"hidden_size": 216, "num_hidden_layers": 7, "intermediate_size": 1260},
    "7b": {"hidden_size": 512, "num_hidden_layers": 7, "intermediate_size": 2700},
}


class Steps:
    """Times training steps of a small model."""

    def __init__(self, folder: Path, llm: str):
        parts = write_random_parts(folder, vision_overrides=VISION, llm_overrides=LLMS[llm])
        build_base(*parts, folder / "base", dtype="float32")
        self.model = VisionLanguageModel(base=str(folder / "base"), freeze_llm=False, dtype="float32")
        self.context = self.model.model.img_context_token_id

    def sample(self, tokens: int, tiles: int) -> dict:
        ids = torch.randint(10, 200, (round(tokens / SCALE),))
        ids[1 : 1 + TILE_TOKENS * tiles] = self.context
        pixels = torch.randint(0, 256, (tiles, 3, 168, 168), dtype=torch.uint8)
        return {"input_ids": ids, "labels": ids, "tiles": pixels, "num_tiles": tiles, "source": "f:1"}

    def seconds(self, shapes: list[tuple[int, int]], packed: bool, tries: int = 3) -> float:
        """Of one step over samples of (tokens, tiles), the better of a few tries."""
        samples = [self.sample(*shape) for shape in shapes]
        found = []
        for _ in range(tries):
            batch = (collate_packed if packed else collate)(samples)
            inputs = self.model.data_preprocessor(batch, True)
            start = time.process_time()
            self.model(**inputs, mode="loss")["loss"].backward()
            found.append(time.process_time() - start)
            self.model.zero_grad(set_to_none=True)
        return min(found)


def features(tokens: np.ndarray, tiles: np.ndarray, packed: bool) -> list[float]:
    """What a step's seconds depend on: 1, padded tokens, tiles, squared lengths."""
    if packed:
        return [1.0, tokens.sum(), tiles.sum(), (tokens.astype(float) ** 2).sum()]
    return [1.0, tokens.max() * len(tokens), tiles.sum(), float(tokens.max()) ** 2 * len(tokens)]


def plan(tokens: np.ndarray, tiles: np.ndarray, packed: bool) -> list[np.ndarray]:
    """Members of each batch of an epoch, in order."""
    if packed:
        packs = arrange(pack_samples(np.arange(len(tokens)), tokens, tiles, max_tokens=BUDGET), RANKS, 0)
        return [packs[number] for number in range(len(packs))]
    size = max(1, int(BUDGET / np.percentile(tokens, 99)))
    order = np.random.default_rng(0).permutation(len(tokens))
    return np.split(order, range(size, len(order), size))


def calibrate(steps: Steps, tokens: np.ndarray, tiles: np.ndarray, num: int) -> tuple[np.ndarray, float]:
    """Coefficients of `features` for this model's seconds, none negative, and the fit's median relative error."""
    rng, cases = np.random.default_rng(1), []
    for packed in (True, False):
        batches = plan(tokens, tiles, packed)
        for place in rng.choice(len(batches), num, replace=False):
            cases.append((tokens[batches[place]], tiles[batches[place]], packed))
    for length in (500, 1000, 2000, 4000):  # what no mixture tells apart: tokens without tiles, long and short
        cases += [(np.full(number, length), np.zeros(number, int), length < 4000) for number in (1, 2)]
    rows, seconds = [], []
    for case in cases:
        seconds.append(
            steps.seconds([(int(length), int(tile)) for length, tile in zip(*case[:2], strict=True)], case[2])
        )
        rows.append(features(*case))
    rows, seconds = np.array(rows), np.array(seconds)
    scale = rows.max(0)  # so that no column counts for more than another; divided by seconds: relative errors
    factors = nnls(rows / scale / seconds[:, None], np.ones(len(rows)))[0] / scale
    return factors, statistics.median(abs(rows @ factors / seconds - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default="1.5b", help="which Qwen2.5 (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument(
        "--timed", type=int, default=12, help="steps of each kind that are timed (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(Path(folder), args.llm)
        steps.seconds([(600, 2)], True)
        for max_tiles in (6, 12):
            tokens, tiles = like_llava_665k(args.samples, max_tiles)
            tokens = np.minimum(tokens, MAX_LENGTH)
            factors, error = calibrate(steps, tokens, tiles, args.timed)
            print(
                f"\n{max_tiles} tiles: a step takes {factors[0] * 1e3:.0f} ms + {factors[1] * 1e6:.1f} us per token, "
                f"{factors[2] * 1e3:.2f} ms per tile, {factors[3] * 1e9:.2f} ns per squared token "
                f"(fit off by {error:.1%})"
            )
            rates = {}
            for packed in (False, True):
                batches = plan(tokens, tiles, packed)
                times = np.array([features(tokens[members], tiles[members], packed) for members in batches]) @ factors
                whole = len(times) // RANKS * RANKS
                waited = times[:whole].reshape(-1, RANKS).max(1).sum()
                useful = sum(int(tokens[members].sum()) for members in batches[:whole])
                rates[packed] = useful / waited
                name = "packs" if packed else f"random batches of {len(batches[0])}"
                waits = 1 - times[:whole].sum() / RANKS / waited
                print(f"  {name:<20} {rates[packed]:8.0f} useful tokens per step-second; ranks wait {waits:.0%} of it")
            print(f"  packs: {rates[True] / rates[False]:.2f} x")


if __name__ == "__main__":
    main()
