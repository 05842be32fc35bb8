"""Opens every record and every image of training data, before the first GPU hour.

    python tools/check_data.py finetune_lora [--set data_paths=a.jsonl image_folders=images]
    python tools/check_data.py a.jsonl b.json --image-folder A --image-folder B [--base models/base]
    python tools/check_data.py a.jsonl --image-folder A --val v.jsonl --val-image-folder A --html page.html
    python tools/check_data.py a.jsonl --image-folder A --names-only
    python tools/check_data.py pairs.jsonl --pairs --image-folder A [--base models/base]
    python tools/check_data.py meta.json [--base models/base]        a meta file of the official code

It says which records can't be trained on, and what else it found: copies within and between files, training images in
validation data and benchmarks, refusals, images enlarged or squeezed (docs/data.md). Findings don't change the exit
status. --html shows all of it, with cards of records. With a model the lengths stay in the cache, for runs and plan.py.
A config's val_data_paths and val_benchmarks are checked after its training data; --reject-list is about the
training data alone. --names-only only compares the names in records with the files of the image folders.

Each complaint begins with `file:line:`. Warnings are about records that train, but perhaps not what their author meant;
of each kind the first few are shown. The exit status is 0 when training can start, 1 when a record is unusable or an
image missing, 2 with a line `error: ...` when the check couldn't be made: a file that isn't there or can't be opened, a
store that doesn't answer, a wrong setting.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.cli.check_data import check_all, compare_names, is_config, open_inputs, prepare_output  # noqa: E402
from xtuner_plugins.settings import add_config_options  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    config = "a training config, by its name or path (its train_dataloader.dataset is checked), or annotation files"
    parser.add_argument("inputs", nargs="+", metavar="CONFIG | DATA", help=config)
    of_files = parser.add_argument_group("with annotation files")
    each = {"action": "append", "default": []}
    of_files.add_argument("--image-folder", metavar="DIR", help="one for each file or one for all; '' for none", **each)
    of_files.add_argument("--val", metavar="DATA", help="validation data, which shall hold no training data", **each)
    of_files.add_argument("--val-image-folder", metavar="DIR", help="of all --val files")
    of_files.add_argument("--base", help="a model directory, to count tokens and tiles")
    of_files.add_argument("--pairs", action="store_true", help="they hold preference pairs (docs/preference.md)")
    add_config_options(parser)
    parser.add_argument("--workers", type=int, help="processes (default: one per core; 0: none)")
    reject = "write the unusable records there; training leaves them out with reject_list=FILE"
    parser.add_argument("--reject-list", metavar="FILE", help=reject)
    parser.add_argument("--names-only", action="store_true", help="only compare names with files; open no image")
    parser.add_argument("--json", metavar="FILE", help="write counts and findings; of --names-only all names")
    parser.add_argument("--html", metavar="FILE", help="write a page with figures, findings and sample cards")
    args = parser.parse_args()
    if args.workers is not None and args.workers < 0:
        parser.error(f"--workers {args.workers} is less than 0")
    if args.names_only and (args.html or args.reject_list):
        parser.error("--names-only opens no record, so it goes with neither --html nor --reject-list")
    has_config = any(map(is_config, args.inputs))
    if has_config and len(args.inputs) > 1:
        parser.error("a config and other inputs together; give one config, or annotation files")
    others = ("image_folder", "base", "pairs", "val", "val_image_folder") if has_config else ("set", "cfg_options")
    for name in others:
        if getattr(args, name):
            theirs = "annotation files; a config names its own" if has_config else "a config"
            parser.error(f"--{name.replace('_', '-')} goes with {theirs}")
    return args


def main() -> int:
    args = parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        datasets = open_inputs(args)
        for path in filter(None, (args.reject_list, args.html, args.json)):
            prepare_output(path)
        return compare_names(datasets, args.json) if args.names_only else check_all(datasets, args)
    except (ValueError, OSError) as error:  # about no record: a wrong setting, a store that doesn't answer
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)  # as a shell says of what was interrupted
