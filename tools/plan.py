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

from xtuner_plugins import settings  # noqa: E402
from xtuner_plugins.cli.shared import at_least, command, make_parser  # noqa: E402
from xtuner_plugins.planning.hardware import GPUS, UTILIZATION, find_gpu  # noqa: E402
from xtuner_plugins.planning.job import launched, obstacle, strategy_named  # noqa: E402
from xtuner_plugins.planning.memory import GIB, plan_memory  # noqa: E402

ALL = (None, *(f"deepspeed_{name}" for name in ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")))


def share(text: str) -> float:
    """An argparse type: numbers above 0, at most 1."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0, at most 1")
    return float(text)


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    settings.add_config_options(parser)
    parser.add_argument("--gpus", type=at_least(1), help="GPUs of the run (default: as launched)")
    cards = "a card, memory as 24GB, auto or cpu for this machine (default: H100, or cpu where the config names one)"
    parser.add_argument("--gpu", metavar="NAME", help=cards)
    parser.add_argument("--gpu-memory", type=at_least(0.1, float), metavar="GIB", help="default: that of --gpu")
    parser.add_argument("--deepspeed", metavar="NAME", help="as for train.py; 'none' for DDP (default: as launched)")
    mfu = "share of the GPU's peak that is reached, recomputation counted as work (default: %(default)s, assumed)"
    parser.add_argument("--mfu", type=share, default=UTILIZATION, help=mfu)
    parser.add_argument("--samples", type=at_least(1), help="samples of an epoch, where lengths aren't measured")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Plans and reports; returns the exit status."""
    from xtuner_plugins.engine.check.text import check_values
    from xtuner_plugins.planning.plan import advise, duration, memory_table, plan_config, strategies_table

    path = settings.find_config(args.config)
    labels = settings.labels_of(path)
    gpus, deepspeed = launched(labels.get("launch", ""))  # what isn't given is as launched
    gpus, gpu = args.gpus or gpus, find_gpu(args.gpu or ("cpu" if "CPU" in labels.get("hardware", "") else "H100"))

    def spread(name):
        return replace(strategy_named(name, gpus), on_cpu=gpu.is_cpu)

    strategy = spread(None if args.deepspeed == "none" else args.deepspeed or deepspeed)

    def read(pairs):
        return settings.read_config(path, settings.parse_words([*args.set, *pairs], args.cfg_options))

    config = read([])
    check_values(config._to_lazy_dict())
    planned = plan_config(config._to_lazy_dict(), strategy, args.samples)
    available, memory, job = int((args.gpu_memory or gpu.memory) * GIB), planned.memory, planned.job
    strategies = map(spread, (None,) if gpu.is_cpu else ALL)
    others = [(each, plan_memory(job, each)) for each in strategies if not obstacle(job, each)]
    held = {name: settings.value_at(config, setting.key) for name, setting in settings.SETTINGS.items()}
    values = {"gradient_checkpointing": True} | {name: value for name, value in held.items() if value is not None}
    holding = [card for card in GPUS.values() if memory.fits(card.memory * GIB)]
    least = min((card.memory for card in holding), default=0)
    smallest = ", ".join(card.name for card in holding if card.memory == least)
    cards = [f"smallest cards that hold it: {smallest} ({least} GB)" if holding else "no card holds it"]
    largest, work, step = job.batches[0], planned.work.total / 1e12, planned.samples_per_step
    print(
        f"{Path(planned.base).name}: {job.shape.parameters:,} parameters, {job.trained:,} trained",
        f"largest micro-batch: {largest.tokens:,} tokens ({largest.supervised:,} supervised), {largest.tiles} tiles",
        memory_table(memory, planned.strategy, gpu.name, available),
        strategies_table(others, available),
        *cards * (not gpu.is_cpu),
        *advise(values, memory, available, lambda pairs: plan_config(read(pairs)._to_lazy_dict(), strategy).memory),
        f"operations, 10**12: {work:,.2f} per sample, {step * work:,.0f} per step of {step:,} samples",
        planned.lengths.source,
        sep="\n",
    )
    if planned.steps is None:
        print("no time: nobody has counted the samples; give --samples, or run tools/check_data.py first")
    elif not gpu.teraflops:
        print(f"no time: the speed of {gpu.name} isn't known; name a card")
    else:
        took = duration(planned.seconds(gpu.teraflops, args.mfu))
        samples, most = planned.steps * step, "" if planned.lengths.is_measured else "at most "
        print(
            f"planned, not measured: {planned.steps:,} steps, {samples:,} samples, {most}{took} on "
            f"{gpus} x {gpu.name} ({gpu.teraflops:g} TFLOPS each) at {args.mfu:.0%} of their peak"
        )
    return int(memory.total > available)


main = command(parse_args, run)

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
