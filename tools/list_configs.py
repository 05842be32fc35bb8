"""Lists the configs of configs/: what each one trains, on which data and hardware, and how it is started.

python tools/list_configs.py
python tools/list_configs.py --family toy --stage finetune
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


from xtuner_plugins.settings import (  # noqa: E402
    CONFIGS,  # noqa: E402
    labels_of,
    leaves,
    read_config,
)

LABELS = ("trains", "data", "hardware", "launch")
TRAINED = "parameters trained"
MEMORY = "each GPU, GiB"
FIGURES = (TRAINED, MEMORY)


def planned(name: str, launch: str) -> dict[str, str]:
    """What a config trains and what each GPU needs at its launch line; dashes where nobody knows the base."""
    from xtuner_plugins.planning.memory import GIB
    from xtuner_plugins.planning.plan import plan_config
    from xtuner_plugins.planning.strategies import launched, strategy_named

    gpus, deepspeed = launched(launch)
    try:
        plan = plan_config(read_config(name)._to_lazy_dict(), strategy_named(deepspeed, gpus))
    except ValueError:
        return dict.fromkeys(FIGURES, "-")
    return {TRAINED: f"{plan.job.trained:,}", MEMORY: f"{plan.memory.total / GIB:.0f}"}


TABLE_FROM = 140  # columns of a terminal; a narrower one gets a paragraph per config


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", metavar="F", help="only the configs of this folder of configs/")
    parser.add_argument("--stage", metavar="S", help="only names that have this word, e.g. pretrain, finetune, lora")
    return parser.parse_args(argv)


def find_rows(family: str | None, stage: str | None) -> list[dict[str, str]]:
    """One row per config: what its docstring says, and the figures."""
    rows = []
    for name, path in leaves().items():
        folder = path.parent.relative_to(CONFIGS).as_posix().replace(".", "")
        if family in (None, folder) and (stage is None or stage in name.split("_")):
            labels = labels_of(path)
            base = {"starts from": labels["starts from"].partition(":")[0]}
            said = {key: labels.get(key, "") for key in LABELS}
            rows.append({"name": name, "family": folder, **planned(name, labels["launch"]), **base, **said})
    return sorted(rows, key=lambda row: (row["family"], row["name"]))


def main(argv=None) -> int:
    args = parse_args(argv)
    rows = find_rows(args.family, args.stage)
    if not rows:
        families = sorted({path.parent.relative_to(CONFIGS).as_posix() for path in leaves().values()} - {"."})
        words = sorted({word for name in leaves() for word in name.split("_")})
        print(f"error: no such config; families: {', '.join(families)}; words: {', '.join(words)}", file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a line is as wide as what it says, so that it can be searched
        Console(width=1000).print(table(rows, list(rows[0])), markup=False)
    elif console.width < TABLE_FROM:
        print_paragraphs(console, rows)
    else:
        console.print(table(rows, [key for key in rows[0] if key not in ("family", "launch")]), markup=False)
        console.print("start one: python tools/train.py NAME (its docstring has the whole launch line)", markup=False)
    return 0


def table(rows, columns):
    """The rows as a table."""
    from rich.table import Table

    made = Table(show_lines=True)
    for column in columns:
        whole = column == "name" or column in FIGURES
        made.add_column(column, no_wrap=whole, overflow="fold", justify="right" if column in FIGURES else "left")
    for row in rows:
        made.add_row(*(row[column] for column in columns))
    return made


def print_paragraphs(console, rows) -> None:
    """Each config's name with its labels below, as its docstring has them."""
    from rich.padding import Padding
    from rich.table import Table

    for row in rows:
        console.print(row["name"], style="bold", markup=False, highlight=False)
        lines = Table.grid(padding=(0, 2))
        lines.add_column(no_wrap=True)
        lines.add_column(overflow="fold")
        for key in row:
            if key != "name" and row[key]:
                lines.add_row(key, row[key])
        console.print(Padding(lines, (0, 0, 1, 2)), highlight=False)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
