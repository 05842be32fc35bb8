"""Measures the lengths of a config's training data before its first run, on one machine or on several.

    python tools/measure_lengths.py finetune_packed
    python tools/measure_lengths.py finetune_packed --shard 3/8 --out shards       on eight machines, with 1/8 to 8/8
    python tools/measure_lengths.py finetune_packed --merge shards                 then, once
    python tools/measure_lengths.py finetune_packed --ray [ADDRESS]

The lengths are put into the cache directory of the data, where training finds them; however they were measured, they
are the same. Data, images and base need the same paths on every machine. Interrupted, the same command goes on where it
was. The exit status is 0, or 2 when nothing could be measured or merged. Unusable records are counted, and the first is
named; they are kept with their reasons, by which training refuses or leaves them out.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.processes import quiet_imports  # noqa: E402
from xtuner_plugins.settings import (  # noqa: E402
    add_config_options,  # noqa: E402
    import_types,
    parse_words,
    read_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a training config, by its name or path")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--shard", metavar="K/N", help="measure this of N shards only; with --out")
    way.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="make the index out of all shards in DIR")
    way.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="measure on a Ray cluster (default: on this machine)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the shard is written")
    parser.add_argument("--workers", type=int, help="processes (default: one per core); --ray: actors")
    add_config_options(parser)
    args = parser.parse_args()
    if bool(args.shard) != bool(args.out):
        parser.error("--shard and --out go together")
    if args.workers is not None and (args.workers < 1 or args.merge):
        parser.error("--workers is 1 or more, and doesn't go with --merge")
    return args


def main() -> int:
    args = parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        print(measure(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> str:
    """What was done, in one line."""
    config = read_config(args.config, parse_words(args.set, args.cfg_options))
    quiet_imports()
    from xtuner_plugins.datasets.plan.shards import Shard, find_shards, measure_shard, merge_shards

    shard = Shard.parse(args.shard) if args.shard else None
    if args.merge:
        find_shards(args.merge)
    import_types(config)  # takes long: what needs no data is refused before

    from mmengine.registry import DATASETS
    from tqdm import tqdm

    from xtuner_plugins.datasets.fates import describe_unusable
    from xtuner_plugins.datasets.plan.cluster import measure_on_ray

    dataset = DATASETS.build(config.train_dataloader.dataset)
    tasks, cache = dataset.measurings(), dataset.cache_dir
    if args.merge:
        done = merge_shards(tasks, args.merge, cache)
        return ", ".join(filter(None, [f"{done:,} records merged into {cache}", describe_unusable(dataset)]))
    of_shard = shard.chunks(tasks) if shard else None
    total = sum(last - first for chunks in of_shard for first, last in chunks) if shard else None
    total = sum(len(task.index) for task in tasks) if total is None else total
    with tqdm(total=total, unit="record", desc="measuring lengths", mininterval=1.0, disable=None) as bar:
        options = {"num_workers": args.workers, "progress": bar.update}
        if shard:
            done = measure_shard(tasks, shard, args.out, cache, **options)
            return f"shard {shard}: {done:,} records measured into {args.out}"
        if args.ray:
            measure_on_ray(tasks, cache, args.ray, **options)
        else:
            for number in range(len(tasks)):
                dataset.lengths(number, **options)
    return ", ".join(filter(None, [f"{total:,} records measured into {cache}", describe_unusable(dataset)]))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)  # as a shell says of what was interrupted
