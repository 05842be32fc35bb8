"""The files that one entry of `data_paths` names: a file, a folder of shards, or a pattern.

data/                          all .parquet (or all .tar) files in it, sorted
data/train-*.parquet           * and ? as in a shell
data/{000000..000099}.tar      braces: a range or {a,b,c}
"""

import glob
import os
import re
from collections.abc import Sequence

from ..errors import SettingError

NUMBERED = re.compile(r"^(?P<name>.*?)-?(?P<number>\d{5,6})-of-(?P<total>\d{5,6})(-[0-9a-f]+)?\.[a-z]+$")
SPLITS = re.compile(r"^(train|test|val|valid|validation|dev|eval)(?![a-z])", re.IGNORECASE)
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
MOST = 100_000  # files of one entry


def expand(path: str) -> list[str]:
    """The files that a pattern names, sorted within each alternative of its braces.

    Raises:
        SettingError: there is none, one that is named outright isn't there, or there are more than `MOST`.
    """
    found: list[str] = []
    for number, name in enumerate(_expand_braces(path)):
        if number == MOST:
            problem = f"its braces name more than {MOST:,} files"
            raise SettingError("data_paths", problem, "name them in several entries, or by * in place of braces", path)
        files = sorted(glob.glob(name)) if any(char in name for char in "*?") else [name]
        if not files or not os.path.isfile(files[0]):
            raise SettingError("data_paths", f"there is no file {name}", "correct data_paths", path)
        found += files
    check_shards(path, found)
    return found


def list_folder(path: str, suffixes: Sequence[str]) -> list[str]:
    """The shards in a folder: its files of the one suffix that occurs, sorted.

    Raises:
        SettingError: files of several suffixes, or as `check_shards`.
    """
    names = sorted(name for name in os.listdir(path) if name[0] not in "._")
    present = [suffix for suffix in suffixes if any(name.endswith(suffix) for name in names)]
    if len(present) > 1:
        problem = f"holds files of several kinds ({', '.join(present)})"
        raise SettingError("data_paths", problem, f"name those of one kind: {path}/*{present[0]}", path)
    found = [os.path.join(path, name) for name in names if present and name.endswith(present[0])]
    check_shards(path, found)
    return found


def check_shards(path: str, files: Sequence[str]) -> None:
    """Refuse a part of a set, and training and test data together.

    Raises:
        SettingError: names as `train-00000-of-00004.parquet` say that shards are missing, or name several splits.
    """
    names = [os.path.basename(file) for file in files]
    splits = sorted({match[1].lower() for match in map(SPLITS.match, names) if match})
    if len(splits) > 1:
        remedy = f"name one of them, e.g. {os.path.join(os.path.dirname(files[0]), splits[0])}*"
        raise SettingError("data_paths", f"holds several splits ({', '.join(splits)})", remedy, path)
    sets: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(NUMBERED.match, names)):
        sets.setdefault((match["name"], int(match["total"])), set()).add(int(match["number"]))
    for (name, total), numbers in sets.items():
        missing = total - len(numbers & set(range(total))) if total <= MOST else 0
        if missing and "*" not in path and "?" not in path and "{" not in path:
            first = min(set(range(total)) - numbers)
            problem = f"{missing} of the {total} shards of {name!r} are missing, the first is number {first}"
            raise SettingError("data_paths", problem, f"fetch them, or name those that are there: {path}/*", path)


def _expand_braces(path: str):
    match = BRACES.search(path)
    if match is None:
        yield path
        return
    ends = RANGE.match(match[1])
    if ends:
        width = len(ends[1]) if ends[1].startswith("0") else 0
        parts = (f"{number:0{width}d}" for number in range(int(ends[1]), int(ends[2]) + 1))
    else:
        parts = match[1].split(",")
    for part in parts:
        yield from _expand_braces(f"{path[: match.start()]}{part}{path[match.end() :]}")
