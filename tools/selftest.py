"""Checks on a CPU, in minutes, that a config trains the same however it is run: a table of passes.

    python tools/selftest.py finetune_lora
    python tools/selftest.py finetune_lora --quick
    python tools/selftest.py my_config.py --set base=models/mine data_paths=a.jsonl image_folders=images

The config's model is replaced by a tiny one of the same classes, with random weights and the base's own tokenizer and
template; where the base isn't there, by a toy of the same family. The first usable records of the config's data are
trained on, or toy records where there are none. What trains, adapters, quantization, optimizer, rates, clipping and
warm-up are the config's; all is computed in float32. The exit status is 0 when every row passes, 1 when one fails, 2
when the config can't be tested.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.arguments import add_config_options, read_changed  # noqa: E402
from xtuner_plugins.config_file import find_config  # noqa: E402

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def strategies(text: str) -> list[str]:
    """An argparse type: names of `STRATEGIES`, separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in STRATEGIES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(STRATEGIES)})")
    return names


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    add_config_options(parser)
    parser.add_argument("--quick", action="store_true", help="leave out what takes two processes")
    parser.add_argument(
        "--strategies",
        type=strategies,
        default=list(STRATEGIES),
        metavar="NAMES",
        help="of the rows with two processes, separated by commas (default: ddp,zero1,zero2,zero3)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for configs, logs and checkpoints")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    os.environ.update(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = None
    try:
        if args.keep:
            args.keep.mkdir(parents=True)
        folder = (args.keep or Path(tempfile.mkdtemp(prefix="selftest_"))).resolve()
        return run(args, folder)
    except FileExistsError:
        print(f"error: --keep {args.keep}: exists already; name a new folder", file=sys.stderr)
    except ValueError as error:  # also of configs, directories and data
        print(f"error: {error}", file=sys.stderr)
    finally:
        if folder and not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 2


def check(settings: dict, config) -> None:
    """Refuses, before anything large is imported, mistakes in the text and a base that nobody knows."""
    from xtuner_plugins.engine.text_check import check_spelling, check_values
    from xtuner_plugins.recipes.plan import known_base

    check_spelling(config)
    check_values(settings)
    base = (settings.get("model") or {}).get("base")
    if isinstance(base, str) and not Path(base, "config.json").is_file():
        known_base(base)


def run(args: argparse.Namespace, folder: Path) -> int:
    """Prints the rows one by one; returns the exit status."""
    path = find_config(args.config)
    config = read_changed(path, args.set, args.cfg_options)
    check(config._to_lazy_dict(), config)
    from xtuner_plugins.cli.terminal import quiet_imports

    quiet_imports()
    from xtuner_plugins.selftest.prepare import prepare

    print("preparing a tiny model and its data", flush=True)
    equalities, descriptions = prepare(config, folder)
    for line in descriptions:
        print(line)
    from xtuner_plugins.selftest.equalities import measure

    verdicts = []
    print(f"\n{'':8}{'what must be equal':<36}{'seconds':>8}  data  largest difference (limit)", flush=True)
    for name, make in equalities.rows(args.strategies, args.quick):
        waiting = f"        {name} ..."
        if sys.stdout.isatty():
            print(waiting, end="\r", flush=True)
        row = measure(name, make)
        verdicts.append(row.verdict)
        print(f"{row.verdict:<8}{row.name:<36}{row.seconds:>8.1f}  {row.data:<4}  {row.details}", flush=True)
    counts = {word: verdicts.count(word) for word in ("pass", "FAIL", "skipped")}
    print(f"\n{counts['pass']} passed, {counts['FAIL']} failed, {counts['skipped']} skipped")
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
