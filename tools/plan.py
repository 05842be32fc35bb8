"""Says how much memory each GPU needs for a config and how long the run takes, before any GPU is at hand.

    python tools/plan.py finetune_full
    python tools/plan.py finetune_full --gpus 4 --gpu-memory 24 --deepspeed deepspeed_zero3_offload --set batch_size=1

GPUs and strategy are those of the config's launch line unless they are given. For a model directory that isn't there
yet, the published model of that name is planned. Lengths are those that a run or tools/check_data.py has measured, else
the largest that the config allows. The exit status is 0 when the run fits, 1 when it doesn't, 2 when nothing could be
planned.
"""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import at_least, finish, make_parser  # noqa: E402
from xtuner_plugins.planning.hardware import GPUS, UTILIZATION, find_gpu  # noqa: E402
from xtuner_plugins.planning.memory import GIB, plan_memory  # noqa: E402
from xtuner_plugins.planning.strategies import launched, obstacle, strategy_named  # noqa: E402
from xtuner_plugins.settings import (  # noqa: E402
    SETTINGS,
    add_config_options,
    find_config,
    labels_of,
    parse_words,
    read_config,
    value_at,
)

ALL = tuple(f"deepspeed_{name}" for name in ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"))


def share(text: str) -> float:
    """An argparse type: numbers above 0, at most 1."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0, at most 1")
    return float(text)


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    add_config_options(parser)
    parser.add_argument("--gpus", type=at_least(1), help="GPUs of the run (default: as launched)")
    words = (
        "a card, its memory as 24GB, auto or cpu for this machine (default: H100, or cpu where the config names one)"
    )
    parser.add_argument("--gpu", metavar="NAME", help=words)
    parser.add_argument("--gpu-memory", type=at_least(0.1, float), metavar="GIB", help="default: that of --gpu")
    parser.add_argument("--deepspeed", metavar="NAME", help="as for train.py; 'none' for DDP (default: as launched)")
    parser.add_argument(
        "--mfu",
        type=share,
        default=UTILIZATION,
        help="share of the GPU's peak that is reached, recomputation counted as work (default: %(default)s, assumed)",
    )
    parser.add_argument("--samples", type=at_least(1), help="samples of an epoch, where lengths aren't measured")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    return finish(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Plans and reports; returns the exit status."""
    from xtuner_plugins.engine.check.text import check_values
    from xtuner_plugins.planning.plan import advise, plan_config

    path = find_config(args.config)
    labels = labels_of(path)
    gpus, deepspeed = launched(labels.get("launch", ""))  # what isn't given is as launched
    args.gpus = args.gpus or gpus
    gpu = find_gpu(args.gpu or ("cpu" if "CPU" in labels.get("hardware", "") else "H100"))

    def spread(name):
        return replace(strategy_named(name, args.gpus), on_cpu=gpu.is_cpu)

    strategy = spread(None if args.deepspeed == "none" else args.deepspeed or deepspeed)

    def read(pairs):
        return read_config(path, parse_words([*args.set, *pairs], args.cfg_options))

    config = read([])
    check_values(config._to_lazy_dict())
    planned = plan_config(config._to_lazy_dict(), strategy, args.samples)
    available = int((args.gpu_memory or gpu.memory) * GIB)
    strategies = map(spread, (None,) if gpu.is_cpu else (None, *ALL))
    others = [(each, plan_memory(planned.job, each)) for each in strategies if not obstacle(planned.job, each)]

    held = {name: value_at(config, setting.key) for name, setting in SETTINGS.items()}
    values = {"gradient_checkpointing": True} | {name: value for name, value in held.items() if value is not None}

    def memory_of(pairs):
        return plan_config(read(pairs)._to_lazy_dict(), strategy).memory

    lines = advise(values, planned.memory, available, memory_of)
    print_plan(args, planned, gpu, available, others, lines)
    return int(planned.memory.total > available)


def print_plan(args, planned, gpu, available, others, lines) -> None:
    """The whole plan as tables and sentences."""
    from xtuner_plugins.planning import report

    job, lengths = planned.job, planned.lengths
    largest = job.batches[0]
    report.show(
        f"{planned.model}: {job.shape.parameters:,} parameters, {job.trained:,} trained",
        f"largest micro-batch: {largest.tokens:,} tokens ({largest.supervised:,} supervised), {largest.tiles} tiles",
        report.memory_table(planned.memory, planned.strategy, gpu.name, available),
        report.strategies_table(others, available),
    )
    holding = [card for card in GPUS.values() if planned.memory.fits(card.memory * GIB)]
    least = min((card.memory for card in holding), default=0)
    smallest = ", ".join(card.name for card in holding if card.memory == least)
    cards = f"smallest cards that hold it: {smallest} ({least} GB)" if holding else "no card holds it"
    work, step = planned.work.total / 1e12, planned.samples_per_step
    report.show(
        *[] if gpu.is_cpu else [cards],
        *lines,
        f"operations, 10**12: {work:,.2f} per sample, {step * work:,.0f} per step of {step:,} samples",
        lengths.source,
    )
    if planned.steps is None:
        report.show("no time: nobody has counted the samples; give --samples, or run tools/check_data.py first")
        return
    if not gpu.teraflops:
        report.show(f"no time: nobody has entered the speed of {gpu.name}; name a card")
        return
    took = report.duration(planned.seconds(gpu.teraflops, args.mfu))
    speed = f"{args.gpus} x {gpu.name} ({gpu.teraflops:g} TFLOPS each) at {args.mfu:.0%} of their peak"
    samples = planned.steps * planned.samples_per_step
    most = "" if lengths.is_measured else "at most "
    report.show(f"planned, not measured: {planned.steps:,} steps, {samples:,} samples, {most}{took} on {speed}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
