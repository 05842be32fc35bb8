"""Writes configs/ from the table of recipes (xtuner_plugins/recipes/rows_*.py): run it after changing a row."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed


def main(argv=None) -> int:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    from xtuner_plugins.recipes.write import write_recipes

    changed = write_recipes(ROOT)
    for path in changed:
        print(f"wrote {path.relative_to(ROOT)}")
    print(f"{len(changed)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
