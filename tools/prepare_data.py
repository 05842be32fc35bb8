"""Turns a downloaded data set into a jsonl that trains here; records of other trainers are read as they are.

    python tools/prepare_data.py --list
    python tools/prepare_data.py llava-instruct-150k downloads/llava_instruct_150k.json data/instruct.jsonl --coco 2014
    python tools/prepare_data.py sharegpt-4o downloads/ShareGPT-4o data/sharegpt.jsonl --image-folder data/sharegpt
    python tools/prepare_data.py mmpr-v1.2 data/mmpr data/mmpr/pairs.jsonl --image-folder data/mmpr/images

Records that training would refuse are left out, each with a line that says why (the first 50 here, all of them in
OUT.left_out.txt). The exit status is 1 when there were any, or the file hasn't as many records as the published one; 2,
with a line `error: ...`, when nothing could be prepared.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 50  # complaints on the screen


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="the data set (see --list)")
    parser.add_argument("source", nargs="?", help="the annotation file; of a data set also the folder that holds it")
    parser.add_argument("out", nargs="?", help="the jsonl to write")
    parser.add_argument("--coco", default="2017", choices=("2014", "2017"), help="how COCO's images are named")
    parser.add_argument("--image-prefix", default="", help="put in front of image names, e.g. coco/train2017/")
    parser.add_argument(
        "--image-folder",
        metavar="DIR",
        help="leave out records whose images aren't in it, and count missing and superfluous files; of a data set "
        "whose file carries the images: write them there",
    )
    parser.add_argument("--any-count", action="store_true", help="the file may have another number of records")
    parser.add_argument("--list", action="store_true", help="show the known data sets, their files and images")
    args = parser.parse_args()
    if not (args.list or args.out):
        parser.error("give NAME SOURCE OUT, or --list")
    return args


def show_list(recipes) -> None:
    for name, recipe in recipes.items():
        count = f"{recipe.num_records:,} ({recipe.counted_by})" if recipe.num_records else "no count is published"
        if recipe.has_meta:
            count = "as meta.json says, file by file"
        print(f"{name}\n    file      {recipe.file}\n    records   {count}\n    images    {recipe.images}")
        if recipe.rule:
            print(f"    rule      {recipe.rule}")


def show_complaints(out: str, complaints: list[str]) -> None:
    """The first complaints on the screen, all of them beside `out`."""
    left_out = Path(f"{out}.left_out.txt")
    left_out.unlink(missing_ok=True)
    if not complaints:
        return
    # A record's text may hold what no file in UTF-8 can.
    left_out.write_text("\n".join(complaints) + "\n", encoding="utf-8", errors="backslashreplace")
    print("\n".join(complaints[:SHOWN]).encode(errors="backslashreplace").decode())
    if len(complaints) > SHOWN:
        print(f"... and {len(complaints) - SHOWN} more in {left_out}")


def written_to(out: str, num: int) -> str:
    """How many records a file was given; without any, it isn't touched."""
    return f"{num} written to {out}" if num else f"0 written ({out} is left as it was)"


def main() -> int:
    args = parse_args()
    sys.path.insert(0, str(ROOT))
    return prepare_set(args)


def prepare_set(args: argparse.Namespace) -> int:
    """`--list`, or NAME SOURCE OUT; the exit status is 1 where a record was left out or the count is another one."""
    from tqdm import tqdm

    from xtuner_plugins.datasets.audit.prepare import prepare
    from xtuner_plugins.datasets.audit.published import RECIPES
    from xtuner_plugins.datasets.errors import DataError

    if args.list:
        show_list(RECIPES)
        return 0
    try:
        with tqdm(unit="record", desc=args.name, file=sys.stderr) as bar:
            result = prepare(
                args.name,
                args.source,
                args.out,
                coco=args.coco,
                image_prefix=args.image_prefix,
                image_folder=args.image_folder,
                begin=bar.reset,
                progress=bar.update,
            )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show_complaints(args.out, result.complaints)
    print(
        f"{result.num_read} records read, {written_to(args.out, result.num_written)} "
        f"({result.num_images} different images, {result.num_text} records of text alone), "
        f"{len(result.complaints)} left out"
    )
    if result.folder:
        print(result.folder, *result.folder.examples(), sep="\n  ")
    recipe = RECIPES[args.name]
    print(f"images: {recipe.images}")
    if recipe.rule:
        print(f"rule: {recipe.rule}")
    if recipe.num_records is None and not recipe.has_meta:
        print(f"no count is published for {recipe.file}: nothing to compare {result.num_read} with")
    remark = "" if args.any_count else result.remark
    if remark:
        print(remark)
    return 1 if result.complaints or remark else 0


if __name__ == "__main__":
    sys.exit(main())
