"""Opens every record and every image of training data, before the first GPU hour.

    python tools/check_data.py finetune_lora [--set data_paths=a.jsonl image_folders=images]
    python tools/check_data.py a.jsonl b.json --image-folder A --image-folder B [--base models/base]
    python tools/check_data.py a.jsonl --image-folder A --val v.jsonl --val-image-folder A --html page.html
    python tools/check_data.py pairs.jsonl --pairs --image-folder A [--base models/base]
    python tools/check_data.py meta.json [--base models/base]        a meta file of the official code
    python tools/check_data.py finetune_packed --step 100 [--ranks 8 --rank 3]

It says which records can't be trained on, and what else it found: copies within and between files, training images in
validation data and benchmarks, images enlarged or squeezed (docs/data.md). Findings don't change the exit
status. --html shows all of it, with cards of records. With a model the lengths stay in the cache, for runs and plan.py.
A config's val_data_paths and val_benchmarks are checked after its training data; --reject-list is about the
training data alone.

--step shows what a step of a run trains on instead: its batches or packs, as the model gets them, by the run's own
loader, plan and seed; no weights are read. A resumed run goes on with the same steps, unless the number of GPUs or the
batch size has changed there. Learned tokens stand in brackets.

Each complaint begins with `file:line:`. Warnings are about records that train, but perhaps not what their author meant;
of each kind the first few are shown. The exit status is 0 when training can start, 1 when a record is unusable or an
image missing, 2 with a line `error: ...` when the check couldn't be made: a file that isn't there or can't be opened, a
store that doesn't answer, a wrong setting.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli import check_data as cli  # noqa: E402
from xtuner_plugins.cli.shared import at_least, command, make_parser, prepare_outputs  # noqa: E402
from xtuner_plugins.settings import add_config_options  # noqa: E402

OF_STEP = ("ranks", "rank", "seed")
OF_FILES = ("image_folder", "base", "pairs", "val", "val_image_folder")


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    config = "a training config, by its name or path (its train_dataloader.dataset is checked), or annotation files"
    parser.add_argument("inputs", nargs="+", metavar="CONFIG | DATA", help=config)
    of_files, each = parser.add_argument_group("with annotation files"), {"action": "append", "default": []}
    of_files.add_argument("--image-folder", metavar="DIR", help="one for each file or one for all; '' for none", **each)
    of_files.add_argument("--val", metavar="DATA", help="validation data, which shall hold no training data", **each)
    of_files.add_argument("--val-image-folder", metavar="DIR", help="of all --val files")
    of_files.add_argument("--base", help="a model directory, to count tokens and tiles")
    of_files.add_argument("--pairs", action="store_true", help="they hold preference pairs (docs/preference.md)")
    add_config_options(parser)
    parser.add_argument("--workers", type=at_least(0), help="processes (default: one per core; 0: none)")
    reject = "write the unusable records there; training leaves them out with reject_list=FILE"
    parser.add_argument("--reject-list", metavar="FILE", help=reject)
    parser.add_argument("--json", metavar="FILE", help="write counts and findings")
    parser.add_argument("--html", metavar="FILE", help="write a page with figures, findings and sample cards")
    of_step = parser.add_argument_group("with a config and --step")
    of_step.add_argument("--step", type=at_least(1), metavar="N", help="show this optimizer step, counted from 1")
    of_step.add_argument("--ranks", type=at_least(1), metavar="N", help="processes of the run (default: 1)")
    of_step.add_argument("--rank", type=at_least(0), metavar="R", help="which of them, from 0 (default: 0)")
    of_step.add_argument("--seed", type=int, help="--seed of the run (default: the config's)")
    args = parser.parse_args(argv)
    has_config, theirs = any(map(cli.is_config, args.inputs)), ("a config", "annotation files; a config names its own")
    strays = [name for name in (OF_FILES if has_config else ("set", "cfg_options")) if getattr(args, name)]
    of_step = [name for name in OF_STEP if getattr(args, name) is not None and args.step is None]
    if of_step:
        parser.error(f"--{of_step[0]} goes with --step")
    if (args.rank or 0) >= (args.ranks or 1):
        parser.error(f"--rank {args.rank} counts from 0 to --ranks - 1")
    if args.step and (not has_config or args.html or args.json or args.reject_list):
        parser.error("--step prints a step of a config; it writes nothing")
    if has_config and len(args.inputs) > 1:
        parser.error("a config and other inputs together; give one config, or annotation files")
    if strays:
        parser.error(f"--{strays[0].replace('_', '-')} goes with {theirs[has_config]}")
    return args


def run(args: argparse.Namespace) -> int | None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.step:
        return cli.show_step(args)
    datasets = cli.open_inputs(args)
    read = [*args.inputs, *args.val, *(source.index.path for each in datasets for source in each.sources)]
    prepare_outputs((args.reject_list, args.html, args.json), read)
    return cli.check_all(datasets, args)


main = command(parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
