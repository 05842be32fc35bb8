"""Training steps on a GPU at true size: packs of 8192 tokens beside padded batches with full logits.

    python benchmarks/bench_gpu.py [--stages warm-up lora qlora full] [--gpu H100] [--out work_dirs/bench_gpu]
    python benchmarks/bench_gpu.py --dry-run                  # the whole script at a tiny size, on a CPU

InternViT-300M and Qwen2.5-1.5B with random weights, bfloat16, recomputation on, samples as long as those of LLaVA-665k.
`packs` are this project's steps. `padded` is what a plain loop would do: the same samples as a padded batch through
`InternVLChatModel.forward`, with a mask and the logits of every position. Each stage and way runs in a process of its
own; a step is one micro-batch and one optimizer step.

tokens/s = tokens of samples, padding not counted, per second of wall time (median step). MFU = floating-point
operations of forward and backward pass, as `planning/work.py` counts them, without what is recomputed, divided by
seconds and the GPU's published peak; both ways are credited with the samples' own operations. Peak memory is PyTorch's
`max_memory_allocated`. Results go to bench_gpu.json and bench_gpu.md.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STAGES = {
    "warm-up": {},
    "lora": {"llm_lora": {"r": 64, "lora_alpha": 128, "lora_dropout": 0.05}},
    "qlora": {
        "llm_lora": {"r": 64, "lora_alpha": 128, "lora_dropout": 0.05},
        "llm_quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    },
    "full": {"freeze_llm": False},
}
WAYS = ("packs", "padded")
BASE = "InternViT-300M-Qwen2.5-1.5B"
BUDGETS = {"true": (8192, 26), "tiny": (256, 8)}  # tokens and tiles of a pack
TINY = {
    "vision_config": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
    "llm_config": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4),
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--shape", choices=BUDGETS, default="true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="the same as --shape tiny --device cpu --steps 2")
    parser.add_argument("--gpu", default="H100", help="whose published peak MFU refers to (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps; two more run before (default: %(default)s)")
    parser.add_argument("--compile-blocks", action="store_true", help="the packs' way with torch.compile")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/bench_gpu"), help="folder of both reports")
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.dry_run:
        args.shape, args.device, args.steps = "tiny", "cpu", 2
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    import torch

    from xtuner_plugins.planning.hardware import GPUS

    if args.gpu not in GPUS:
        print(f"error: --gpu {args.gpu}: its peak is not known; known: {', '.join(GPUS)}", file=sys.stderr)
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA GPU here; --dry-run runs the script on a CPU", file=sys.stderr)
        return 2
    if args.one:
        print(json.dumps(measure(*args.one, args)))
        return 0
    rows = [run_one(stage, way, args) for stage in args.stages for way in WAYS]
    result = {"hardware": hardware(args.device), "date": date.today().isoformat(), "shape": args.shape, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "bench_gpu.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.out / "bench_gpu.md").write_text(as_markdown(result), encoding="utf-8")
    print(as_markdown(result))
    return int(all("error" in row for row in rows))


def run_one(stage: str, way: str, args: argparse.Namespace) -> dict:
    """A stage in one way, in a process of its own; what fails there is a row with an error."""
    words = ["--shape", args.shape, "--device", args.device, "--steps", str(args.steps), "--gpu", args.gpu]
    words += ["--compile-blocks"] * args.compile_blocks
    done = subprocess.run([sys.executable, __file__, *words, "--one", stage, way], capture_output=True, text=True)
    if done.returncode == 0:
        return {"stage": stage, "way": way, **json.loads(done.stdout.splitlines()[-1])}
    reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return {"stage": stage, "way": way, "error": reason}


def hardware(device: str) -> dict:
    """The machine and the versions."""
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def model_config(shape: str):
    """`InternVLChatConfig` of the true model, or of a tiny one of the same classes."""
    from xtuner_plugins.planning.published import BASES, meta_model

    config = copy.deepcopy(meta_model(BASES[BASE]).config)
    if shape == "tiny":
        for part, fields in TINY.items():
            for name, value in fields.items():
                setattr(getattr(config, part), name, value)
        config.vision_config.image_size = config.force_image_size = 112
        config.llm_config.num_key_value_heads, config.llm_config.vocab_size = 2, 1000
        config.llm_config.layer_types = ["full_attention"] * 2
    return config


def plan_job(config, settings: dict):
    """The job, for `planning/work.py`."""
    from xtuner_plugins.planning.job import Batch
    from xtuner_plugins.planning.plan import Model, job_of
    from xtuner_plugins.planning.shapes import shape_of

    vision, llm = config.vision_config.to_dict(), config.llm_config.to_dict()
    size, ratio = config.force_image_size, config.downsample_ratio
    shape = shape_of(vision, llm, tile_size=size, downsample_ratio=ratio, select_layer=config.select_layer)
    return job_of({"model": {"base": BASE, **settings}}, Model(BASE, shape, vision, llm), (Batch(1, 0, 1),))


def make_packs(shape: str, tokens_per_tile: int, side: int, steps: int) -> list[list[dict]]:
    """Samples of so many packs. Token 0 stands for image features; the last third of a text is supervised."""
    import numpy as np
    import torch
    from llava_like import like_llava_665k

    from xtuner_plugins.datasets.plan.packing import pack_samples

    max_tokens, max_tiles = BUDGETS[shape]
    rng = np.random.default_rng(0)
    if shape == "true":
        tokens, tiles = like_llava_665k(40 * steps, 6)
        tokens = np.minimum(tokens, max_tokens)
    else:
        tiles = rng.integers(0, 3, 20 * steps)
        tokens = tiles * tokens_per_tile + rng.integers(20, 60, 20 * steps)
    packs = pack_samples(np.arange(len(tokens)), tokens, tiles, max_tokens=max_tokens, max_tiles=max_tiles)

    def sample(index: int) -> dict:
        count, features = int(tokens[index]), int(tiles[index]) * tokens_per_tile
        ids = torch.from_numpy(rng.integers(1, 900, count))
        ids[1 : 1 + features] = 0
        labels = ids.clone()
        labels[: count - (count - features) // 3] = -100
        pixels = torch.from_numpy(rng.integers(0, 256, (int(tiles[index]), 3, side, side), dtype=np.uint8))
        return {
            "input_ids": ids,
            "labels": labels,
            "tiles": pixels,
            "num_tiles": int(tiles[index]),
            "source": str(index),
        }

    return [[sample(index) for index in packs[number]] for number in range(steps)]


def measure(stage: str, way: str, args: argparse.Namespace) -> dict:
    """Steps of one stage in this process: median seconds, tokens, operations, peak memory."""
    import torch

    torch.manual_seed(0)
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    settings = {**STAGES[stage], "compile_blocks": args.compile_blocks and way == "packs"}
    model, optimizer = build(model_config(args.shape), settings, dtype, torch.device(args.device), way)
    packs = make_packs(args.shape, model.num_image_token, model.tile_size, args.steps + 2)
    job, times, losses = plan_job(model.model.config, STAGES[stage]), [], []
    for number, samples in enumerate(packs):
        wait(args.device)
        if number == 2 and args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss = loss_of(model, samples, way, dtype)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(args.device)
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    return summary(args, job, packs[2:], times[2:], losses)


def build(config, settings: dict, dtype: str, device, way: str) -> tuple:
    """The training model with random weights, and its optimizer."""
    from benchmarks.bench_memory_plan import build_random
    from xtuner_plugins.engine.optimizers import build_adamw

    model = build_random(config, {"base": BASE, **settings}, dtype, device)
    model.to(device).train()
    if way == "padded":
        model.model.language_model.set_attn_implementation("sdpa")
    return model, build_adamw([p for p in model.parameters() if p.requires_grad], lr=1e-5)


def loss_of(model, samples: list[dict], way: str, dtype: str):
    """The loss of one micro-batch, as each way computes it."""
    import torch

    from xtuner_plugins.datasets import collate, collate_packed

    if way == "packs":
        return model(**model.data_preprocessor(collate_packed(samples), True), mode="loss")["loss"]
    batch, device = collate(samples, pad_token_id=1), next(model.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "labels")}
    with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        pixels = model.data_preprocessor.normalize(batch["tiles"].to(device)).to(model.model.vision_model.dtype)
        return model.model(pixel_values=pixels, **inputs).loss


def wait(device: str) -> None:
    """Until the GPU has done what it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def summary(args: argparse.Namespace, job, packs: list[list[dict]], times: list[float], losses: list[float]) -> dict:
    """What a process reports."""
    import resource

    import torch

    from xtuner_plugins.planning.hardware import GPUS
    from xtuner_plugins.planning.job import Batch
    from xtuner_plugins.planning.work import work_of

    rates, shares = [], []
    for samples, seconds in zip(packs, times, strict=True):
        sizes = [(len(s["input_ids"]), s["num_tiles"], int((s["labels"] >= 0).sum())) for s in samples]
        work = [work_of(job, Batch(*size)) for size in sizes]
        rates.append(sum(tokens for tokens, _, _ in sizes) / seconds)
        shares.append(sum(each.total - each.recomputed for each in work) / seconds / (GPUS[args.gpu].teraflops * 1e12))
    on_gpu = args.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_per_second": statistics.median(rates),
        "mfu": statistics.median(shares) if on_gpu else None,
        "peak_bytes": peak,
        "seconds": times,
        "first_loss": losses[0],
        "steps": len(times),
    }


def as_markdown(result: dict) -> str:
    """The table with machine, versions and date."""
    about = ", ".join(f"{key} {value}" for key, value in result["hardware"].items())
    lines = [
        f"{result['date']}, shape {result['shape']}: {about}",
        "",
        "| stage | way | tokens/s | MFU | peak memory |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "error" in row:
            lines.append(f"| {row['stage']} | {row['way']} | {row['error']} | | |")
            continue
        share = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        figures = f"{row['tokens_per_second']:,.0f} | {share} | {row['peak_bytes'] / 2**30:.2f} GiB"
        lines.append(f"| {row['stage']} | {row['way']} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
