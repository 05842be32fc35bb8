"""Opens every record and every image of training data, before the first GPU hour.

    python tools/check_data.py finetune_lora [--set data_paths=a.jsonl image_folders=images]
    python tools/check_data.py a.jsonl b.json --image-folder A --image-folder B [--base models/base]
    python tools/check_data.py a.jsonl --image-folder A --val v.jsonl --val-image-folder A --html page.html
    python tools/check_data.py a.jsonl --image-folder A --names-only
    python tools/check_data.py pairs.jsonl --pairs --image-folder A [--base models/base]
    python tools/check_data.py meta.json [--base models/base]        a meta file of the official code

First the names in records are compared with the files of the image folders: how many are missing, and how many files no
record names. --names-only stops there (seconds for half a million images). A config's val_data_paths are checked after
its training data; --reject-list is about the training data alone.

Then it says what else it found: copies within and between files, training images in validation data, refusals,
outliers, images enlarged or squeezed (docs/data.md). These don't change the exit status. --html shows all of it, with
cards of records to search, filter and sort; --serve shows the same with all records.

Each complaint begins with `file:line:`. Warnings are about records that train, but perhaps not what their author meant;
of each kind the first few are shown. The exit status is 0 when training can start, 1 when a record is unusable or an
image missing, 2 with a line `error: ...` when the check couldn't be made: a file that isn't there or can't be opened, a
store that doesn't answer, a wrong setting. --serve ends with 0 on Ctrl-C.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.cli.check_inputs import is_config, open_inputs, open_port, prepare_output  # noqa: E402
from xtuner_plugins.settings import add_config_options  # noqa: E402


def at_least(low: int):
    """An argparse type: whole numbers from `low` on."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is less than {low}")
        return number

    return whole_number


def port(text: str) -> int:
    """An argparse type: 0 for a free port."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{number}: give 0 to 65535")
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="CONFIG | DATA",
        help="a training config, by its name or path (its train_dataloader.dataset is checked), or annotation files",
    )
    parser.add_argument(
        "--image-folder",
        action="append",
        default=[],
        metavar="DIR",
        help="with annotation files: one for each of them, or one for all; '' for none",
    )
    parser.add_argument(
        "--val",
        action="append",
        default=[],
        metavar="DATA",
        help="with annotation files: validation data, checked too, that shall hold nothing of the training data",
    )
    parser.add_argument("--val-image-folder", metavar="DIR", help="of all --val files")
    parser.add_argument("--base", help="with annotation files: a model directory, to count tokens and tiles")
    parser.add_argument(
        "--pairs", action="store_true", help="the annotation files hold preference pairs (docs/preference.md)"
    )
    add_config_options(parser)
    parser.add_argument("--workers", type=at_least(0), help="processes (default: one per core; 0: none)")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="open everything, also what an earlier check of the same data has opened and no file has changed of",
    )
    parser.add_argument(
        "--reject-list",
        metavar="FILE",
        help="write the unusable records there; training leaves them out with reject_list=FILE",
    )
    parser.add_argument(
        "--names-only",
        action="store_true",
        help="only compare names with the files of the image folders; open no image",
    )
    parser.add_argument("--json", metavar="FILE", help="write counts, findings, and all missing and superfluous names")
    parser.add_argument("--html", metavar="FILE", help="write a page with figures, findings and sample cards")
    parser.add_argument(
        "--serve",
        nargs="?",
        type=port,
        const=0,
        metavar="PORT",
        help="then show the page at 127.0.0.1, with cards of all records, until Ctrl-C (default: a free port)",
    )
    parser.add_argument(
        "--cards",
        type=at_least(0),
        default=200,
        metavar="N",
        help="random samples on the page, besides records with complaints and examples of findings (default: 200; "
        "0: no cards); with more than 400 cards the images go to a folder beside the page",
    )
    parser.add_argument("--pack-tokens", type=at_least(1), default=8192, help="budget of the packs drawn on the page")
    args = parser.parse_args()
    if args.names_only and (args.html or args.reject_list or args.serve is not None):
        parser.error("--names-only opens no record, so it goes with none of --html, --serve and --reject-list")
    of_files = ("image_folder", "base", "pairs", "val", "val_image_folder")
    of_config = [name for name in of_files if getattr(args, name)]
    if any(map(is_config, args.inputs)):
        if len(args.inputs) > 1:
            parser.error("a config and other inputs together; give one config, or annotation files")
        if of_config:
            parser.error(f"--{of_config[0].replace('_', '-')} goes with annotation files; a config names its own")
    else:
        for option in ("set", "cfg_options"):
            if getattr(args, option):
                parser.error(f"--{option.replace('_', '-')} goes with a config")
    return args


def refuse(error: Exception) -> int:
    """Says why nothing was checked, one line for each unusable file; returns the exit status."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2


def main() -> int:
    args = parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from xtuner_plugins.cli.check_output import check_all

    try:
        (dataset, *validation), benchmarks = open_inputs(args)
        for path in filter(None, (args.reject_list, args.html, args.json)):
            prepare_output(path)
        listener = None if args.serve is None else open_port(args.serve)
    except (ValueError, OSError) as error:
        return refuse(error)
    from xtuner_plugins.datasets.errors import DataError  # imports PyTorch, which a refusal doesn't wait for

    try:
        return check_all(dataset, validation, benchmarks, args, listener)
    except (DataError, OSError) as error:  # about no record: a store that doesn't answer, a cache that can't be written
        return refuse(error)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)  # as a shell says of what was interrupted
