"""Shows what a step of a run trains on: its batches or packs, as the model gets them.

    python tools/show_batch.py finetune_packed --step 100
    python tools/show_batch.py finetune_packed --step 100 --ranks 8 --rank 3 --html step.html
    python tools/show_batch.py my_run.py --step 900 --ranks 4 --checkpoint work_dirs/my_run/iter_500.pth

Samples, order and packs are those of the run: the same loader, plan and seed make them. Nothing is trained, and no
weights are read. A resumed run goes on with the same steps, so --checkpoint is only needed where the number of GPUs or
the batch size has changed there. --html writes a page with boundaries, learned tokens and tiles.
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
    find_config,
    import_types,
    parse_words,
    read_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a training config, by its name or path")
    parser.add_argument("--step", type=int, default=1, metavar="N", help="optimizer step, from 1 (default: 1)")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes of the run (default: 1)")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="which of them, from 0 (default: 0)")
    parser.add_argument("--seed", type=int, help="--seed of the run (default: the config's)")
    parser.add_argument("--checkpoint", metavar="FILE", help="that the run was resumed from")
    parser.add_argument("--html", metavar="FILE", help="write a page")
    add_config_options(parser)
    args = parser.parse_args()
    if args.step < 1 or args.ranks < 1 or not 0 <= args.rank < args.ranks:
        parser.error("--step and --ranks count from 1, --rank from 0 to --ranks - 1")
    return args


def main() -> int:
    args = parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        show(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(args: argparse.Namespace) -> None:
    path = find_config(args.config)
    config = read_config(path, parse_words(args.set, args.cfg_options))
    quiet_imports()
    import_types(config)

    from xtuner_plugins.audit.show_batch import describe_batch, write_batch_page
    from xtuner_plugins.checkpoints.work_dir import read_checkpoint
    from xtuner_plugins.engine.step_batches import take_step

    checkpoint = read_checkpoint(args.checkpoint) if args.checkpoint else None
    step = take_step(config, args.step, args.rank, args.ranks, args.seed, checkpoint)
    where = f"step {step.number:,}, in epoch {step.epoch + 1}; rank {args.rank} of {args.ranks}"
    print(where)
    for number, batch in enumerate(step.batches, 1):
        print(f"\nmicro-batch {number} of {len(step.batches)}:", *describe_batch(batch), sep="\n")
    if args.html:
        write_batch_page(args.html, f"Step {step.number:,}", [where, str(path)], step.batches, step.dataset.tokenizer)
        print(f"\npage written to {args.html}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)  # as a shell says of what was interrupted
