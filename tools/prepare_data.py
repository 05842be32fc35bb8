"""Turns a downloaded data set, or another trainer's records, into a jsonl that trains here.

    python tools/prepare_data.py --list
    python tools/prepare_data.py llava-instruct-150k downloads/llava_instruct_150k.json data/instruct.jsonl --coco 2014
    python tools/prepare_data.py sharegpt-4o downloads/ShareGPT-4o data/sharegpt.jsonl --image-folder data/sharegpt
    python tools/prepare_data.py mmpr-v1.2 data/mmpr data/mmpr/pairs.jsonl --image-folder data/mmpr/images

    python tools/prepare_data.py --kinds
    python tools/prepare_data.py convert theirs.json ours.jsonl [--from alpaca] [--image-folder images]

`convert` recognizes each record's kind; images inside records are written to --image-folder. The columns and tags of a
dataset_info.json of LLaMA-Factory beside the file, or of --info, are followed.

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
    parser.add_argument("name", nargs="?", help="the data set (see --list), or 'convert'")
    parser.add_argument("source", nargs="?", help="the annotation file; of a data set also the folder that holds it")
    parser.add_argument("out", nargs="?", help="the jsonl to write")
    parser.add_argument("--coco", default="2017", choices=("2014", "2017"), help="how COCO's images are named")
    parser.add_argument("--image-prefix", default="", help="put in front of image names, e.g. coco/train2017/")
    parser.add_argument(
        "--image-folder",
        metavar="DIR",
        help="leave out records whose images aren't in it, and count missing and superfluous files; of a data set "
        "whose file carries the images: write them there. With convert: what names in records are relative to, and "
        "where images inside records are written",
    )
    parser.add_argument(
        "--from", dest="kind", metavar="KIND", help="with convert: the only kind that is taken (--kinds)"
    )
    parser.add_argument("--info", metavar="FILE", help="with convert: a dataset_info.json that is not beside the file")
    parser.add_argument("--any-count", action="store_true", help="the file may have another number of records")
    parser.add_argument("--list", action="store_true", help="show the known data sets, their files and images")
    parser.add_argument("--kinds", action="store_true", help="show the kinds of records that are recognized")
    args = parser.parse_args()
    if not (args.list or args.kinds or args.out):
        parser.error("give NAME SOURCE OUT, convert SOURCE OUT, --list or --kinds")
    for_sets = [name for name in ("image_prefix", "any_count") if getattr(args, name)]
    if args.name == "convert" and (for_sets or args.coco != "2017"):
        parser.error(f"--{(for_sets or ['coco'])[0].replace('_', '-')} goes with a data set, not with convert")
    if args.name != "convert" and (args.kind or args.info):
        parser.error(f"--{'from' if args.kind else 'info'} goes with convert")
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


def convert_file(args: argparse.Namespace) -> int:
    """`convert SOURCE OUT`; the exit status is 1 where a record was left out."""
    from tqdm import tqdm

    from xtuner_plugins.datasets.audit.convert import convert
    from xtuner_plugins.datasets.errors import DataError

    try:
        with tqdm(unit="record", desc="convert", file=sys.stderr) as bar:
            result = convert(
                args.source,
                args.out,
                kind=args.kind,
                image_folder=args.image_folder,
                info=args.info,
                begin=bar.reset,
                progress=bar.update,
            )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show_complaints(args.out, result.complaints)
    kinds = ", ".join(f"{count} {name or 'of no known kind'}" for name, count in result.kinds.most_common())
    print(f"kinds: {kinds}" + (f" (columns as in {result.columns.place})" if result.columns else ""))
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.reasons.most_common())
    print(
        f"{result.num_read} records read, {written_to(args.out, result.num_written)}, {len(result.complaints)} left out"
        f"{f' ({reasons})' if reasons else ''}"
    )
    if result.num_images:
        print(f"{result.num_images} different images written to {args.image_folder}")
    return 1 if result.complaints else 0


def written_to(out: str, num: int) -> str:
    """How many records a file was given; without any, it isn't touched."""
    return f"{num} written to {out}" if num else f"0 written ({out} is left as it was)"


def main() -> int:
    args = parse_args()
    sys.path.insert(0, str(ROOT))
    if args.name == "convert":
        return convert_file(args)
    if args.kinds:
        from xtuner_plugins.datasets.records.kinds import kinds_table

        print(kinds_table())
        return 0
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
