"""The table of all leaves in ``docs/recipes.md``: where the counted parameters of each recipe are kept.

Counting takes PyTorch and seconds (`count.py`); whoever only shows the figures reads them here.
"""

from __future__ import annotations

import re
from pathlib import Path

# What stands between the marks is written by `write.py`, the rest is a person's.
BEGIN, END = "<!-- recipes: begin -->\n", "<!-- recipes: end -->\n"
_ROW = re.compile(r"\| \[(?P<stem>\w+)\]\(\S+\) \| [\d,]+ \| (?P<trained>[\d,]+) \|")


def trained_parameters(page: Path) -> dict[str, int]:
    """Parameters that each leaf of the table trains, adapters included; the toy recipes are not in it."""
    table = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return {row["stem"]: int(row["trained"].replace(",", "")) for row in _ROW.finditer(table)}
