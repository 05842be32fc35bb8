"""What kind of questions a file holds: a TSV file as VLMEvalKit lays it out, or JSON lines of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...datasets.errors import DataError, SettingError
from . import own, tsv
from .files import read_json_lines
from .item_draft import Draft
from .kinds import KINDS

Drafts = Iterator[tuple[str, "Draft | DataError"]]


@dataclass(frozen=True)
class Source:
    """What was recognized.

    Attributes:
        kind: A key of `KINDS`.
        reason: Why, for people.
        read: Its drafts, read as a kind.
        kinds: As which it can be read.
    """

    kind: str
    reason: str
    read: Callable[[str], Drafts]
    kinds: tuple[str, ...]


def settle(path: Path, source: Source, kind: str | None) -> tuple[str, str]:
    """(kind, why), of what was asked for and what was recognized.

    Raises:
        SettingError: The file can't be read as the kind that was asked for.
    """
    if kind is not None and kind not in source.kinds:
        option = f"name it: --kind, one of {', '.join(source.kinds)}"
        raise SettingError("kind", f"{path} can't be read as {kind!r}: {source.reason}", option)
    return (source.kind, source.reason) if kind is None else (kind, "as asked")


def recognize(path: Path, cache: str | Path | None) -> Source:
    """The kind of a file, and how to read it.

    Raises:
        SettingError: It is none that is known.
    """
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        return _tsv(path, cache)
    if suffix not in (".jsonl", ".json") or path.is_dir():
        raise SettingError("data", f"{path} is neither .tsv nor .jsonl", "name a file of questions")
    record = next((row.values for row in read_json_lines(path) if row.values is not None), None)
    if record is None:
        raise SettingError("data", f"{path} holds no line that is a JSON object", "write one object per line")
    reason = f"its first record has the keys {', '.join(list(record)[:8])}"
    if own.TURNS not in record and ("question" not in record or not {"answer", "answers"} & record.keys()):
        problem = f"{path}: {reason}; 'question' and 'answer', or 'conversations', are needed"
        raise SettingError("kind", problem, f"a file of your own has the keys {', '.join(own.KEYS)}")
    return Source("own", f"{reason}: a file of your own", lambda _: own.drafts(read_json_lines(path)), ("own",))


def _tsv(path: Path, cache: str | Path | None) -> Source:
    columns = tsv.check_columns(path)
    named = [kind for kind, row in KINDS.items() if row.stems and path.stem.lower().startswith(row.stems)]
    kind = named[0] if named else "own"
    name = f"the name of {kind}" if named else "no benchmark's name"
    reason = f"a TSV file with {name} and the columns {', '.join(columns[:8])}"
    return Source(kind, reason, lambda name: tsv.drafts(path, name, cache), tuple(KINDS))
