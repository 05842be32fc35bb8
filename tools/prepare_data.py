"""Turns a downloaded data set into a jsonl that trains here.

    python tools/prepare_data.py llava-instruct-150k downloads/llava_instruct_150k.json data/instruct.jsonl --coco 2014
    python tools/prepare_data.py --list

Records that training would refuse are left out, each with a line that says why. The exit status is 1 when there were
any, or when the file hasn't as many records as the published one.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="the data set (see --list)")
    parser.add_argument("source", nargs="?", help="the downloaded annotation file, or the folder that holds it")
    parser.add_argument("out", nargs="?", help="the jsonl to write")
    parser.add_argument("--coco", default="2017", choices=("2014", "2017"), help="how COCO's pictures are named")
    parser.add_argument("--image-prefix", default="", help="put in front of picture names, e.g. coco/train2017/")
    parser.add_argument("--list", action="store_true", help="show the known data sets and their files")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tqdm import tqdm

    from xtuner_plugins.datasets.errors import DataError
    from xtuner_plugins.datasets.prepare import RECIPES, prepare

    if args.list:
        for name, recipe in RECIPES.items():
            print(f"{name:<24} {recipe.file:<44} {recipe.num_records or '(releases differ)'}")
        return 0
    if not args.out:
        parser.error("give NAME SOURCE OUT, or --list")
    try:
        with tqdm(unit="record", desc=args.name, file=sys.stderr) as bar:
            result = prepare(
                args.name, args.source, args.out, coco=args.coco, image_prefix=args.image_prefix, progress=bar.update
            )
    except DataError as error:
        print(error)
        return 1
    for complaint in result.complaints:
        print(complaint)
    print(
        f"{result.num_read} records read, {result.num_written} written to {args.out}, {len(result.complaints)} left out"
    )
    if result.remark:
        print(result.remark)
    return 1 if result.complaints or result.remark else 0


if __name__ == "__main__":
    sys.exit(main())
