"""A first measurement of a GPU in about ten minutes: kernels taken, speed, memory beside the plan, some settings.

    python benchmarks/bench_gpu.py [--budget-s 600] [--rows kernels full ...] [--out work_dirs/bench_gpu.jsonl]
    python benchmarks/bench_gpu.py --dry-run                  # every row at a tiny size, on a CPU

InternViT-300M and Qwen2.5-1.5B with random weights train on packs of 8192 tokens, samples as long as those of
LLaVA-665k, by the `run_step` of a run; a step is one micro-batch and one update. Each row runs in a process
of its own, so one that fails or runs out of memory ends alone, and says what it needs where it can't run. Each result
is one line of JSON on stdout and in `--out`, written at once; the most valuable rows come first:

    machine     device, versions, peak
    kernels     which attention each part took, the kernels with the most time, whether AdamW is fused
    full, lora, warm-up, qlora      seconds per step, tokens per second, MFU, memory beside the plan
    attention   varlen beside SDPA, forward and backward, and the error of both against float32
    waits       whether forward and backward wait for the GPU, and which lines of a step do
    repeat      whether the same steps give the same bits
    lora-cast, encoder-autocast, loss-chunks, compile       A/B of one setting, the ways in turns
    padded      the official model's forward on padded batches with full logits, for comparison with `full`

Times are between events of the GPU; no step waits for them. `[a, b, c]` is lower quartile, median, upper quartile.
Tokens are those of samples, without padding. MFU counts the operations of forward and backward pass by
`planning/work.py`, without recomputation, over the published peak of the device.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xtuner_plugins.processes import allocator_settings  # noqa: E402

# Name -> module, function and its arguments. They aren't imported here: what they import may ask the GPU.
ROWS = {
    "machine": ("gpu_rows", "machine"),
    "kernels": ("gpu_kernels", "kernels"),
    "full": ("gpu_rows", "stage", "full"),
    "lora": ("gpu_rows", "stage", "lora"),
    "attention": ("gpu_kernels", "attention"),
    "warm-up": ("gpu_rows", "stage", "warm-up"),
    "qlora": ("gpu_rows", "stage", "qlora"),
    "waits": ("gpu_rows", "waits"),
    "repeat": ("gpu_rows", "repeat"),
    "lora-cast": ("gpu_rows", "lora_cast"),
    "encoder-autocast": ("gpu_rows", "encoder_autocast"),
    "loss-chunks": ("gpu_rows", "loss_chunks"),
    "padded": ("gpu_rows", "padded"),
    "compile": ("gpu_rows", "compiled"),
}


class Bench(NamedTuple):
    """How rows measure.

    Attributes:
        device: `cuda` or `cpu`.
        tiny: a small model of the same classes, and short packs.
        steps: timed ones, after two that aren't.
    """

    device: str
    tiny: bool
    steps: int


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="in this order")
    parser.add_argument("--budget-s", type=float, default=600, help="no row starts after it (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, at least 2 (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/bench_gpu.jsonl"), help="(default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, 2 steps")
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error(f"--steps {args.steps}: quartiles need at least 2")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    bench = Bench("cpu", True, 2) if args.dry_run else Bench("cuda", False, args.steps)
    if args.dry_run:
        context = multiprocessing.get_context("fork")  # what is imported here needn't be imported in every row
        for module, *_ in ROWS.values():
            import_module(f"benchmarks.{module}")
    else:
        import torch

        if not torch.cuda.is_available():
            print("error: PyTorch finds no CUDA GPU here; --dry-run runs the script on a CPU", file=sys.stderr)
            return 2
        context = multiprocessing.get_context("spawn")  # CUDA doesn't survive a fork
    os.environ.update(allocator_settings(os.environ, has_gpu=not args.dry_run))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    start, failed, left = time.monotonic(), False, []
    with open(args.out, "w", encoding="utf-8") as file:
        for name in args.rows:
            if time.monotonic() - start >= args.budget_s:
                left.append(name)
                continue
            for result in results(context, name, bench):
                failed |= "error" in result
                say(file, {"row": name, "at_s": round(time.monotonic() - start, 1), **result})
        say(file, {"row": "end", "at_s": round(time.monotonic() - start, 1), "budget_s": args.budget_s, "left": left})
    return int(failed)


def say(file, line: dict) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    file.write(text + "\n")
    file.flush()


def results(context, name: str, bench: Bench):
    """What a row finds, as it finds it, in a process of its own."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_row, args=(sender, name, bench))
    process.start()
    sender.close()
    told = False
    while True:
        try:
            result = receiver.recv()
        except EOFError:
            break
        told |= "error" in result
        yield result
    process.join()
    if process.exitcode and not told:
        yield {"error": f"the process ended with status {process.exitcode}"}


def run_row(sender: Connection, name: str, bench: Bench) -> None:
    os.dup2(2, 1)  # stdout is for results
    module, function, *arguments = ROWS[name]
    try:
        for result in getattr(import_module(f"benchmarks.{module}"), function)(bench, *arguments):
            sender.send(result)
    except Exception as error:
        traceback.print_exc()
        sender.send({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
