"""Takes the vision tower, the projector or the language model out of a model directory.

python tools/extract.py exports/mine llm parts/llm
python tools/extract.py exports/mine projector parts/projector
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="model directory of any format")
    parser.add_argument("part", choices=["vision", "projector", "llm"])
    parser.add_argument("out", help="directory to write")
    parser.add_argument("--max-shard-size", default="4GB", help="largest weight file (default 4GB)")
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    from xtuner_plugins.checkpoints.assembly.extract import extract

    try:
        done = extract(args.directory, args.part, args.out, max_shard_size=args.max_shard_size, force=args.force)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {done['out']}: {done['num_tensors']} tensors, {done['num_bytes'] / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
