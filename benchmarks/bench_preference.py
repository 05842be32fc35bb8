"""A DPO step on an image-heavy pair: prompt and answers in one row, beside two rows, beside TRL's DPO trainer.

    OMP_NUM_THREADS=1 python benchmarks/bench_preference.py [--ways one_row two_rows trl] [--rounds 3]

A pair has an image of 13 tiles (256 tokens each), a question, and two answers of 100 tokens. LoRA of rank 16 trains on
the LLM, the reference is the model with adapters off, the loss is DPO's, all in float32. A step is both forward passes,
the backward pass and AdamW's update, with the recomputation of activations that the recipes ship, and without.

`two_rows` is the same code on two rows per pair, prompt and images in both. `trl` is TRL's trainer on the model's
`-hf` export through transformers' own InternVL (`pip install --no-deps trl==1.16.0`).

Each way runs in a process of its own, in turns; medians over rounds are printed, and ratios to `two_rows`. Seconds are
the processor's. Peak memory is what a step adds to the process that holds model and optimizer.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image

from xtuner_plugins.datasets import collate_packed, collate_pairs
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert
from xtuner_plugins.models import PreferenceModel
from xtuner_plugins.models.preference import PairLogProbs
from xtuner_plugins.toy.models import write_random_parts

VISION = dict(
    image_size=448, patch_size=14, hidden_size=256, num_attention_heads=4, intermediate_size=1024, num_hidden_layers=4
)
LLM = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4)
WAYS = ("two_rows", "one_row", "trl")
TILES, QUESTION, ANSWER = 13, 30, 100
STEPS = 1
LORA = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])


class TwoRows(PreferenceModel):
    """The same objective on rows that hold one answer each, the chosen one first."""

    def forward(self, row, pixel_values, **_):
        patches = self._encode(pixel_values)
        expected = self._expected(row, pixel_values, patches)
        each = self._token_log_probs(row, patches)
        sums = [each.new_zeros(2).index_add(0, row.owners, values) for values in (each, expected)]
        count = torch.full((1,), float(ANSWER))
        pairs = PairLogProbs(*sums[0].split(1), *sums[1].split(1), count, count)
        chosen, rejected = (self.settings.beta * ratio for ratio in pairs.log_ratios())
        return {"loss": -torch.nn.functional.logsigmoid(chosen - rejected).mean()}


def make_pair(model: PreferenceModel) -> dict:
    """A pair as `PreferenceDataset` makes them."""
    generator = np.random.default_rng(0)
    lengths = (TILES * model.num_image_token + QUESTION, ANSWER, ANSWER)
    ids = torch.from_numpy(generator.integers(10, 200, sum(lengths)))
    ids[2 : 2 + TILES * model.num_image_token] = model.img_context_token_id
    labels = ids.clone()
    labels[: lengths[0]] = -100
    size = model.tile_size
    tiles = torch.from_numpy(generator.integers(0, 256, (TILES, 3, size, size), dtype=np.uint8))
    facts = {"num_tiles": TILES, "source": "made:1", "branches": lengths}
    return {"input_ids": ids, "labels": labels, "tiles": tiles, **facts}


def in_rows(pair: dict) -> list[dict]:
    """The pair as two samples, prompt and images in both."""
    prompt, chosen, rejected = (torch.arange(n) for n in pair["branches"])
    chosen, rejected = chosen + len(prompt), rejected + len(prompt) + len(chosen)
    rows = []
    for answer in (chosen, rejected):
        places = torch.cat([prompt, answer])
        rows.append({**pair, "input_ids": pair["input_ids"][places], "labels": pair["labels"][places]})
    return rows


def measure(way: str, base: str, recomputed: bool) -> dict:
    """Some steps in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if way == "trl":
        step = trl_step(base, recomputed)
    else:
        settings = dict(dtype="float32", gradient_checkpointing=recomputed, llm_lora=dict(type=LoraConfig, **LORA))
        made = {"one_row": PreferenceModel, "two_rows": TwoRows}[way]
        model = made(base=base, objectives={"dpo": 1.0}, freeze_projector=True, **settings).train()
        pair = make_pair(model)
        batch = collate_pairs([pair]) if way == "one_row" else collate_packed(in_rows(pair))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> float:
            loss = model(**model.data_preprocessor(dict(batch), True), mode="loss")["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [step()]
    start = time.process_time()
    losses += [step() for _ in range(STEPS)]
    seconds = (time.process_time() - start) / STEPS
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 2**20
    return {"seconds": seconds, "peak": peak, "first_loss": losses[0], "last_loss": losses[-1]}


def trl_step(base: str, recomputed: bool):
    """A training step of TRL's trainer; images are cut into tiles and texts become ids before the time runs."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    folder = f"{base}-hf"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1344, 1792, 3), dtype=np.uint8))
    words = processor.tokenizer.decode(np.random.default_rng(1).integers(300, 400, 400).tolist())
    answer = [" ".join(words.split()[start : start + 60]) for start in (0, 60)]
    record = {"images": [image], "prompt": [{"role": "user", "content": words[:60]}]}
    sides = {
        name: [{"role": "assistant", "content": text}]
        for name, text in zip(("chosen", "rejected"), answer, strict=True)
    }
    kept = LoraConfig(**{**LORA, "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"})
    with tempfile.TemporaryDirectory() as out:
        settings = DPOConfig(
            out,
            per_device_train_batch_size=1,
            gradient_checkpointing=recomputed,
            use_cpu=True,
            report_to=[],
            bf16=False,
            max_length=None,
        )
        trainer = DPOTrainer(
            get_peft_model(model, kept),
            args=settings,
            train_dataset=Dataset.from_list([{**record, **sides}]),
            processing_class=processor,
        )
    inputs = next(iter(trainer.get_train_dataloader()))
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-4)
    print({key: tuple(value.shape) for key, value in inputs.items()}, inputs["completion_mask"].sum(1), file=sys.stderr)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it

    def step() -> float:
        loss = trainer.training_step(trainer.model, dict(inputs))
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["two_rows", "one_row"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "BASE", "RECOMPUTED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], args.one[2] == "True")))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        build_base(*write_random_parts(folder, vision_overrides=VISION, llm_overrides=LLM), base, dtype="float32")
        if "trl" in args.ways:
            convert(base, Path(f"{base}-hf"), format="hf")
        for recomputed in (True, False):
            found = {way: [] for way in args.ways}
            for _ in range(args.rounds):
                for way in args.ways:
                    words = [sys.executable, __file__, "--one", way, str(base), str(recomputed)]
                    done = subprocess.run(words, capture_output=True)
                    assert done.returncode == 0, done.stderr.decode()
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            report("activations recomputed" if recomputed else "activations kept", found)


def report(title: str, found: dict[str, list[dict]]) -> None:
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()
    }
    peer = next(iter(medians.values()))
    print(title)
    for way, figures in medians.items():
        print(
            f"  {way:<9} {figures['seconds']:6.1f} s per step ({figures['seconds'] / peer['seconds']:.2f}x), "
            f"adds {figures['peak']:.2f} GiB ({figures['peak'] / peer['peak']:.2f}x), "
            f"loss {figures['first_loss']:.6f} to {figures['last_loss']:.6f}"
        )


if __name__ == "__main__":
    main()
