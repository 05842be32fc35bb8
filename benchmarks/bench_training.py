"""Training steps of peers beside ours: same weights, same samples, same order, float32.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py [--shape small] [--ways official rows packs] [--rounds 3]

The official way is `InternVLChatModel.forward` on padded batches: attention with a mask of the whole batch, logits of
every position. `trl`, `swift` and `llamafactory`, where they are installed, are `training_step` of the trainers of TRL,
ms-swift and LLaMA-Factory on transformers' model of the same export. Ours takes the same padded batches (`rows`), and
packs of the same samples (`packs`). The LLM trains, the vision encoder is frozen, and the vocabulary has 151,674
tokens, as InternVL2.5's with Qwen2.5.

Each way runs in a process of its own, in turns, after one step that isn't counted; medians over rounds are printed, and
ratios to the first way. Useful tokens are those that aren't
padding. Seconds are the processor's. Peak memory is what a step adds to the process that holds model and optimizer.
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

from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.datasets.plan.packing import pack_samples
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.models.losses import LossHead
from xtuner_plugins.models.vlm import VisionLanguageModel
from xtuner_plugins.toy.models import write_random_parts

VOCABULARY = 151_674
SHAPES = {
    "small": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4),
    "medium": dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8),
}
BATCH_SIZE, NUM_BATCHES = 8, 4


def make_samples(context: int, tile_tokens: int, side: int) -> list[dict]:
    """Samples with 0 to 3 tiles and texts of 40 to 400 tokens, of which the last third are answers."""
    generator = np.random.default_rng(0)
    samples = []
    for index in range(BATCH_SIZE * NUM_BATCHES):
        tiles, words = int(generator.integers(0, 4)), int(np.exp(generator.uniform(np.log(40), np.log(400))))
        ids = torch.from_numpy(generator.integers(10, 200, tiles * tile_tokens + words))
        ids[1 : 1 + tiles * tile_tokens] = context
        labels = ids.clone()
        labels[: len(ids) - words // 3] = -100
        pixels = torch.from_numpy(generator.integers(0, 256, (tiles, 3, side, side), dtype=np.uint8))
        sample = {"input_ids": ids, "labels": labels, "tiles": pixels, "num_tiles": tiles, "source": f"made:{index}"}
        samples.append(sample)
    return samples


def make_batches(way: str, samples: list[dict]) -> list[dict]:
    """Padded batches in order, or as many packs of the same samples."""
    if way != "packs":
        return [collate(samples[start : start + BATCH_SIZE]) for start in range(0, len(samples), BATCH_SIZE)]
    lengths = np.array([len(sample["input_ids"]) for sample in samples])
    tiles = np.array([sample["num_tiles"] for sample in samples])
    budget = int(lengths.sum() / NUM_BATCHES * 1.05)
    packs = pack_samples(np.arange(len(samples)), lengths, tiles, max_tokens=budget)
    return [collate_packed([samples[index] for index in packs[number]]) for number in range(len(packs))]


def widen(model: torch.nn.Module) -> None:
    """Give a model the vocabulary; new rows are zeros."""
    known = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.data[known:] = 0


SETTINGS = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], remove_unused_columns=False)


def transformers_model(hf: str):
    """Transformers' model and tokenizer of the hf form, the encoder frozen."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(hf, dtype=torch.float32, attn_implementation="sdpa")
    return model, AutoTokenizer.from_pretrained(hf)


def trl_trainer(hf: str, rows):
    """TRL's trainer."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = transformers_model(hf)
    config = SFTConfig(f"{hf}-trl", dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, **SETTINGS)
    return SFTTrainer(model, config, lambda rows: rows[0], rows, processing_class=tokenizer)


def swift_trainer(hf: str, rows):
    """ms-swift's trainer, with its own loading of the model."""
    from swift.model import get_model_processor
    from swift.template import get_template
    from swift.trainers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    kind = dict(model_type="internvl", torch_dtype=torch.float32, attn_impl="sdpa", use_hf=True)
    model, processor = get_model_processor(hf, **kind)
    return Seq2SeqTrainer(model, Seq2SeqTrainingArguments(f"{hf}-swift", **SETTINGS), get_template(processor), rows)


def llamafactory_trainer(hf: str, rows):
    """LLaMA-Factory's trainer."""
    from llamafactory.hparams import FinetuningArguments, TrainingArguments
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    model, tokenizer = transformers_model(hf)
    settings = dict(args=TrainingArguments(f"{hf}-factory", **SETTINGS), train_dataset=rows, tokenizer=tokenizer)
    return CustomSeq2SeqTrainer(FinetuningArguments(), None, model=model, **settings)


PEERS = {"trl": trl_trainer, "swift": swift_trainer, "llamafactory": llamafactory_trainer}
WAYS = ("official", *PEERS, "rows", "packs")


def measure(way: str, base: str) -> dict:
    """One pass over the samples in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VisionLanguageModel(base=base, freeze_llm=False, dtype="float32", gradient_checkpointing=False)
    llm = model.model.language_model
    widen(llm)
    LossHead.take_over(llm.get_output_embeddings())
    if way == "official":
        llm.set_attn_implementation("sdpa")
    peer = None
    if way in PEERS:
        from datasets import Dataset

        peer = PEERS[way](
            f"{base}-hf", Dataset.from_list([{"input_ids": [1]}])
        )  # it is given batches, but asks for some
        widen(peer.model)
        peer.model.model.vision_tower.requires_grad_(False)
        peer.current_gradient_accumulation_steps = 1  # as `train` sets it
    trained = (peer.model if peer else model).train()
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-5)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    samples = make_samples(model.img_context_token_id, model.num_image_token, model.tile_size)
    batches = make_batches(way, samples)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = []
    for batch in (batches[0], *batches):
        if len(losses) == 1:
            start = time.process_time()
        optimizer.zero_grad(set_to_none=False)
        if way == "official":
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
            loss = model.model(pixel_values=model.data_preprocessor.normalize(batch["tiles"]), **inputs).loss
        elif peer:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
            inputs["pixel_values"] = model.data_preprocessor.normalize(batch["tiles"])
            loss = peer.training_step(trained, inputs)
        else:
            loss = model(**model.data_preprocessor(batch, True), mode="loss")["loss"]
        if not peer:
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.process_time() - start
    useful = sum(len(sample["input_ids"]) for sample in samples)
    return {
        "tokens_per_second": useful / seconds,
        "peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 2**20,
        "padding": sum(batch["input_ids"].numel() for batch in batches) / useful,
        "first_loss": losses[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small", "medium"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["official", "rows", "packs"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "BASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            llm = {**SHAPES[shape], "num_key_value_heads": SHAPES[shape]["num_attention_heads"] // 2}
            base = Path(folder, "base")
            build_base(*write_random_parts(folder, llm_overrides=llm), base, dtype="float32")
            if not PEERS.keys().isdisjoint(args.ways):
                convert = [sys.executable, str(Path(__file__).parents[1] / "tools" / "convert_to_official.py")]
                subprocess.run([*convert, "--from", base, f"{base}-hf", "--format", "hf"], check=True, stdout=2)
            found = {way: [] for way in args.ways}
            for _ in range(args.rounds):
                for way in args.ways:
                    done = subprocess.run([sys.executable, __file__, "--one", way, str(base)], capture_output=True)
                    assert done.returncode == 0, done.stderr.decode()
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
        report(shape, found)


def report(shape: str, found: dict[str, list[dict]]) -> None:
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()
    }
    peer = next(iter(medians.values()))
    print(f"{shape}: {BATCH_SIZE * NUM_BATCHES} samples, batches of {BATCH_SIZE}")
    for way, figures in medians.items():
        print(
            f"  {way:<12} {figures['tokens_per_second']:7.0f} useful tokens/s "
            f"({figures['tokens_per_second'] / peer['tokens_per_second']:.2f}x), "
            f"a step adds {figures['peak']:.2f} GiB ({figures['peak'] / peer['peak']:.2f}x), "
            f"{figures['padding']:.2f} tokens computed per useful one, first loss {figures['first_loss']:.6f}"
        )


if __name__ == "__main__":
    main()
