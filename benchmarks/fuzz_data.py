"""Generated records, sizes and texts without end: nothing but results or our own errors may come out.

    python benchmarks/fuzz_data.py --cases 1000000 [--seed 0]

Mutates good records (values swapped, removed, nested, of other types; control tokens, surrogates and odd unicode in the
texts) and draws image sizes, then runs what training runs: parsing, tokens and labels, tiles, budgets, truncation,
measured lengths, packing. The first foreign exception or broken promise stops it with the case printed.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from data_inputs import make_base
from tqdm import trange

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.datasets.plan.budget import SHARING, TileBudget, truncate
from xtuner_plugins.datasets.plan.measure import count_pieces
from xtuner_plugins.datasets.plan.packing import pack_samples
from xtuner_plugins.datasets.records.boxes import normalize_boxes
from xtuner_plugins.datasets.records.json_index import parse_json
from xtuner_plugins.datasets.records.records import expand_videos, parse_record
from xtuner_plugins.datasets.text.conversation import Piece, encode, split_pieces
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.errors import DataError
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template

SCRAPS = [
    "<image>",
    "<video>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<img>",
    "<IMG_CONTEXT>",
    "<box>",
    "<box>[[1,2,3,4]]</box>",
    "</ref>",
    "\0",
    "\u202e",
    "e\u0301",
    "中文",
    "👩\u200d👧",
    "\r\n",
    " ",
    "word",
    "1234",
    "\ufeff",
]
VALUES = [None, True, 0, -1, 1.5, "", "x", [], {}, ["x"], {"a": 1}, [None], "human", "gpt", "system"]


def text(rng: random.Random) -> str:
    if rng.random() < 0.01:
        return "half a pair: \ud800"
    planes = (range(1, 0xD800), range(0xE000, 0x11000))
    return "".join(
        rng.choice(SCRAPS) if rng.random() < 0.7 else chr(rng.choice(rng.choice(planes)))
        for _ in range(rng.randrange(8))
    )


def good(rng: random.Random) -> dict:
    keys, roles = rng.choice([(("from", "value"), ("human", "gpt")), (("role", "content"), ("user", "assistant"))])
    turns = [{keys[0]: roles[number % 2], keys[1]: text(rng)} for number in range(2 * rng.randrange(1, 4))]
    record = {"conversations" if keys[0] == "from" else "messages": turns}
    if rng.random() < 0.6:
        record["image"] = rng.choice(["a.jpg", ["a.jpg"], ["a.jpg", "b.jpg"], None, "../x"])
    if rng.random() < 0.2:
        record["video"] = "v.mp4"
    if rng.random() < 0.2:
        record["system"] = text(rng)
    if rng.random() < 0.2:
        record |= {"boxes": rng.choice(["pixel", "normalized", 3]), "width": rng.choice([640, 0, "x"]), "height": 480}
    return record


def mutate(value, rng: random.Random, depth: int = 0):
    """The value with a few places changed."""
    if rng.random() < 0.01:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        return {key: mutate(part, rng, depth + 1) for key, part in value.items() if rng.random() > 0.01}
    if isinstance(value, list):
        parts = [mutate(part, rng, depth + 1) for part in value]
        if parts and rng.random() < 0.05:
            parts.insert(rng.randrange(len(parts)), rng.choice(parts))
        return parts
    return value


def run_case(rng: random.Random, tokenizer: TextTokenizer) -> tuple[int, int, list[Piece]] | None:
    """One case; returns the length of its sample, that of its text, and its pieces; None for an error of ours."""
    raw = mutate(good(rng), rng)
    line = json.dumps(raw, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        line = line[: rng.randrange(len(line) + 1)]
    sizes_of = lambda number: [(rng.randrange(1, 20_001), rng.randrange(1, 20_001)) for _ in range(number)]  # noqa: E731
    try:
        record = parse_record(parse_json(line, "f:1"), "f:1")
        record = expand_videos(record, [rng.randrange(1, 5) for _ in record.media])
        record = normalize_boxes(record)
        sizes = [
            (0, 0) if medium.kind == "frame" else size
            for medium, size in zip(record.media, sizes_of(len(record.media)), strict=True)
        ]
        low = rng.randrange(1, 13)
        rule = DynamicTiling(low, rng.randrange(low, 41), rng.choice([28, 112, 448]), rng.random() < 0.5)
        budget = TileBudget(rng.choice([1, 16]), rng.randrange(1, 2000), rng.choice(SHARING))
        bare = encode(record, get_template(rng.choice(list(TEMPLATES))), tokenizer, [0] * len(sizes), 0)
        limits = budget.fit(rule, sizes, len(bare) - 2 * len(sizes))
        tiles = [budget.count(rule, size, limit) for size, limit in zip(sizes, limits, strict=True)]
        sample = encode(record, get_template("internvl2_5"), tokenizer, tiles, budget.tokens_per_tile)
        assert (sample.input_ids == tokenizer.image_context_id).sum() == sum(tiles) * budget.tokens_per_tile
        assert (sample.labels != -100).sum() >= sum(
            turn.role == "assistant" and turn.supervised for turn in record.turns
        )
        cut = truncate(sample, budget.max_length)
        if cut is not None:
            assert len(cut[0]) <= budget.max_length and (cut[0].labels != -100).any()
            kept = (cut[0].input_ids == tokenizer.image_context_id).sum()
            assert kept == sum(tiles[: cut[1]]) * budget.tokens_per_tile
        text = len(sample) - sum(length for _, length in sample.spans)
        return len(sample), text, split_pieces(record, get_template("internvl2_5"), tokenizer)
    except DataError as error:
        assert str(error) and error.reason
        return None


def check_together(good: list[tuple[int, int, list[Piece]]], tokenizer: TextTokenizer, seed: int) -> None:
    """Measure and pack the samples of some cases."""
    lengths, texts, pieces = zip(*good, strict=True)
    assert count_pieces(pieces, tokenizer)[:, 0].tolist() == list(texts)
    tokens = np.minimum(lengths, 4096)
    packs = pack_samples(np.arange(len(good)), tokens, tokens // 100, max_tokens=4096, seed=seed)
    assert sorted(packs.order.tolist()) == list(range(len(good))) and packs.tokens.max() <= 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder))
        tokenizer = TextTokenizer.from_pretrained(folder)
    # every template's control tokens are needed to render it
    names = [name for name in TEMPLATES if get_conv_template(name).stop_token in tokenizer.ids]
    for name in set(TEMPLATES) - set(names):
        TEMPLATES.pop(name)
    good, results = [], 0
    for case in trange(args.cases, unit="case", mininterval=1.0):
        try:
            found = run_case(random.Random(f"{args.seed}-{case}"), tokenizer)
        except BaseException:
            print(f"\ncase {case} of seed {args.seed} failed", file=sys.stderr)
            raise
        if found is not None:
            results += 1
            good.append(found)
        if len(good) == 500:
            check_together(good, tokenizer, case)
            good.clear()
    print(f"{args.cases} cases: {results} samples, {args.cases - results} errors of ours, nothing else")


if __name__ == "__main__":
    main()
