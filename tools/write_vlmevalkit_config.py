"""Writes the config with which VLMEvalKit evaluates an export.

    python tools/write_vlmevalkit_config.py exports/mine mine.json
    python tools/write_vlmevalkit_config.py exports/mine mine.json --data MMVet HallusionBench --max-new-tokens 1024

EXPORT is a directory in the official format. Then, where VLMEvalKit is installed: python run.py --config mine.json
Without --data the config names the benchmarks whose answers a judge reads; the others are in tools/evaluate.py, too.

Exit status: 0 when the file is written; 1 when it can't be; 2 for a wrong command line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="directory in the official format")
    parser.add_argument("out", help="JSON file to write")
    parser.add_argument("--name", help="what VLMEvalKit calls the model (default: the directory's name)")
    parser.add_argument("--data", nargs="+", metavar="NAME", help="benchmarks (default: those with a judge)")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: the wrapper's)")
    parser.add_argument("--mpo-prompt", action="store_true", help="ask for reasoning, as MPO models are asked")
    parser.add_argument("--lmdeploy", action="store_true", help="answer through lmdeploy instead of transformers")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        parser.error("--max-new-tokens takes 1 or more")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    from xtuner_plugins.evaluation.vlmevalkit import JUDGED, make_config, write_config

    choice = {"max_new_tokens": args.max_new_tokens, "mpo_prompt": args.mpo_prompt, "lmdeploy": args.lmdeploy}
    try:
        config = make_config(args.export, args.name, args.data or JUDGED, **choice)
        write_config(config, args.out, force=args.force)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (name,) = config["model"]
    print(f"wrote {args.out}: {name} on {', '.join(config['data'])}")
    print("note: the wrapper cuts images into at most 6, 12, 18 or 24 tiles by benchmark, whatever the export says")
    print(f"run it with: python run.py --config {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
