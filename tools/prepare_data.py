"""Turns a downloaded data set that isn't read as it is into a jsonl that trains here.

    python tools/prepare_data.py --list
    python tools/prepare_data.py ai-challenger downloads/caption_train_annotations_20170902.json data/captions.jsonl
    python tools/prepare_data.py minimind-v "downloads/*.parquet" data/minimind.jsonl --image-folder data/minimind

Records that training would refuse are left out, each with a line that says why (the first 50 here, all of them in
OUT.left_out.txt). The exit status is 1 when there were any; 2, with a line `error: ...`, when nothing was prepared.
All other data sets go into `data_paths` as they are; `tools/check_data.py` opens them.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import finish, make_parser  # noqa: E402

SHOWN = 50  # complaints on the screen


def run(args: argparse.Namespace) -> int:
    from xtuner_plugins.audit.prepare import RECIPES, prepare

    if args.list:
        for name, recipe in RECIPES.items():
            print(f"{name}\n    files     {recipe.files}\n    images    {recipe.images}")
        return 0
    result = prepare(args.name, args.source, args.out, args.image_folder)
    left_out = Path(f"{args.out}.left_out.txt")
    left_out.unlink(missing_ok=True)
    if result.complaints:  # a record's text may hold what no file in UTF-8 can
        left_out.write_text("\n".join(result.complaints) + "\n", encoding="utf-8", errors="backslashreplace")
        print("\n".join(result.complaints[:SHOWN]).encode(errors="backslashreplace").decode())
    told = f"{len(result.complaints)} left out ({left_out})" if result.complaints else "none left out"
    print(f"{result.num_read} records read, {result.num_written} written to {args.out}, {told}")
    return int(bool(result.complaints))


def main(argv=None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("name", nargs="?", help="the data set (see --list)")
    parser.add_argument("source", nargs="?", help="the downloaded file, or a pattern of several; see --list")
    parser.add_argument("out", nargs="?", help="the jsonl to write")
    images = "leave out records whose images aren't in it; images inside a file are written there"
    parser.add_argument("--image-folder", metavar="DIR", help=images)
    parser.add_argument("--list", action="store_true", help="show the data sets, their files and images")
    args = parser.parse_args(argv)
    if not (args.list or args.out):
        parser.error("give NAME SOURCE OUT, or --list")
    return finish(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
