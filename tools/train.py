"""Train a config: the arguments of `xtuner train` and --set, with a status that tells whether training succeeded.

python tools/train.py finetune_lora --set base=models/base data_paths=a.jsonl image_folders=images lr=5e-5
python tools/train.py finetune_lora --set base=models/base data_paths=a.jsonl image_folders=images --dry-run
NPROC_PER_NODE=4 python tools/train.py configs/pretrain_mlp.py --deepspeed deepspeed_zero3

--dry-run checks what a start checks, prints the plan of tools/plan.py for as many GPUs as processes,
and trains nothing.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xtuner_plugins.engine.launch.launcher import build_parser, main  # noqa: E402
from xtuner_plugins.settings import SETTINGS, ConfigError, parse_words, read_config, value_at  # noqa: E402


def tell_rate(args) -> None:
    """Prints the rate of another base's row where the config keeps that of its own base."""
    from xtuner_plugins.planning.published import other_rate

    base, key = SETTINGS["base"].key, SETTINGS["lr"].key
    try:
        changes = parse_words(args.set, args.cfg_options)
        config = read_config(args.config, changes)
    except ConfigError:
        return  # the launcher refuses it
    if base in changes and key not in changes and (rate := other_rate(config.model, value_at(config, key))):
        name, own = Path(config.model.base).name, value_at(config, key)
        print(f"note: lr={rate:g} is the rate for {name}; this config has {own:g}", file=sys.stderr, flush=True)


def dry_run(args) -> int:
    """The checks of a start, then the plan; the status is that of the first which fails."""
    if status := main():
        return status
    from tools import plan

    processes = int(os.environ.get("NPROC_PER_NODE", 1)) * int(os.environ.get("NNODES", 1))
    words = [args.config, "--gpus", str(processes), "--deepspeed", args.deepspeed or "none"]
    words += ["--set", *args.set] * bool(args.set) + ["--cfg-options", *args.cfg_options] * bool(args.cfg_options)
    print("The config can start; nothing was trained. The plan of this run:", flush=True)
    return plan.main(words)


if __name__ == "__main__":
    args = build_parser().parse_args()
    tell_rate(args)
    sys.exit(dry_run(args) if args.dry_run else main())
