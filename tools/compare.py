"""Compares two results of tools/evaluate.py question by question.

    python tools/compare.py results/one_tile results/tiles
    python tools/compare.py results/before results/after --html comparison.html --json comparison.json

A and B must have been measured on the same data with the same metric; questions that only one of them answered are left
out. The table has, per data set, both scores, the difference with its 95 % interval (paired bootstrap), its p-value
(McNemar's exact test where an answer is right or wrong) and how many questions each of them answers better.

Exit status: 0; 1 when the results can't be compared; 2 for a wrong command line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="folder of results")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--html", metavar="FILE", help="also write a page with the answers that differ")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def run(args: argparse.Namespace) -> int:
    from xtuner_plugins.evaluation.results import read_results

    one, other = read_results(args.a), read_results(args.b)
    import json

    from xtuner_plugins.evaluation.compare import as_json, compare
    from xtuner_plugins.evaluation.compare_page import comparison_table, write_comparison
    from xtuner_plugins.inference.chat import printable

    comparisons = compare(one, other)
    found = as_json(comparisons)
    print(printable(comparison_table(found)))
    if args.json:
        models = {"a": one[0]["model"], "b": other[0]["model"]}
        text = json.dumps({**models, "datasets": found}, indent=2, ensure_ascii=False) + "\n"
        Path(args.json).write_text(text, encoding="utf-8")
    if args.html:
        write_comparison(args.html, [one[0], other[0]], comparisons, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
