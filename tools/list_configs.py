"""Lists the configs of configs/: what each one trains, on which data and hardware, and how it is started.

python tools/list_configs.py
python tools/list_configs.py --family toy --stage finetune
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.config_file import CONFIGS, leaves  # noqa: E402
from xtuner_plugins.leaf import Leaf  # noqa: E402

COLUMNS = ("trains", "data", "hardware", "launch")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", metavar="F", help="only the configs of this folder of configs/")
    parser.add_argument("--stage", metavar="S", help="only names that have this word, e.g. pretrain, finetune, lora")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    from rich.console import Console
    from rich.table import Table

    rows = {}
    for name, path in leaves().items():
        family = path.parent.relative_to(CONFIGS).as_posix().replace(".", "")
        if args.family in (None, family) and (args.stage is None or args.stage in name.split("_")):
            labels = Leaf.read(path).labels
            rows[family, name] = [name, family, *(labels.get(column, "") for column in COLUMNS)]
    if not rows:
        families = sorted({path.parent.relative_to(CONFIGS).as_posix() for path in leaves().values()} - {"."})
        words = sorted({word for name in leaves() for word in name.split("_")})
        print(f"error: no such config; families: {', '.join(families)}; words: {', '.join(words)}", file=sys.stderr)
        return 2
    table = Table(show_lines=True)
    for column in ("name", "family", *COLUMNS):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in sorted(rows):
        table.add_row(*rows[row])
    console = Console()
    # Without a terminal a line is as wide as what it says, so that it can be searched.
    console.print(table, markup=False) if console.is_terminal else Console(width=1000).print(table, markup=False)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
