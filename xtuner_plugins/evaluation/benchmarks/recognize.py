"""What kind of benchmark a file or folder holds, told by columns, keys and names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ...datasets.errors import SettingError
from . import layouts, own, tsv
from .files import read_json, read_json_lines
from .kinds import KINDS

Read = Callable[[Path], layouts.Drafts]
Layouts = tuple[tuple[set[str], str, Read], ...]  # keys of a record, kind, how the file is read

ANSWER_INDEX = "answer (an index)"  # stands for a key whose value is a whole number
LINES: Layouts = (
    ({"sent", "bbox"}, "refcoco", layouts.refcoco),
    ({"text", "label", "image"}, "pope", layouts.pope),
    ({"question", "choices", "hint", "image", ANSWER_INDEX}, "scienceqa", layouts.scienceqa_lines),
)
ARRAYS: Layouts = (
    ({"imgname", "query", "label"}, "chartqa", layouts.chartqa),
    ({"image_path", "question", "answers", "type"}, "ocrbench", layouts.ocrbench),
)
DATA_ARRAYS: Layouts = (
    ({"image_id", "question", "question_id"}, "textvqa", layouts.textvqa),
    ({"questionId", "question", "image"}, "docvqa", layouts.docvqa),
)
OBJECTS: Layouts = (({"question", "choices", "split", ANSWER_INDEX}, "scienceqa", layouts.scienceqa),)
FOLDERS = (  # files in the folder, kind, how it is read
    ("*.txt", "mme", layouts.mme),
    ("existence/**/*.txt", "mme", layouts.mme_release),
    ("*pope*.json", "pope", layouts.pope),
    ("test_*.json", "chartqa", layouts.chartqa),
)


@dataclass(frozen=True)
class Source:
    """What was recognized.

    Attributes:
        kind: None where the file can't tell.
        reason: Why, for people.
        read: Its drafts, read as a kind.
        kinds: As which it can be read.
    """

    kind: str | None
    reason: str
    read: Callable[[str], layouts.Drafts]
    kinds: tuple[str, ...]


def settle(path: Path, source: Source, kind: str | None) -> tuple[str, str]:
    """(kind, why), of what was asked for and what was recognized.

    Raises:
        SettingError: They disagree, or there is neither.
    """
    option = f"name it: --kind, one of {', '.join(source.kinds)}"
    if kind is None and source.kind is None:
        raise SettingError("kind", f"{path}: {source.reason}", option)
    if kind is not None and kind not in source.kinds:
        raise SettingError("kind", f"{path} can't be read as {kind!r}: {source.reason}", option)
    return (source.kind, source.reason) if kind is None else (kind, "as asked")


def recognize(path: Path, cache: str | Path | None) -> Source:
    """The kind of a file or folder, and how to read it.

    Raises:
        SettingError: It is none that is known.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path)
    if suffix == ".tsv":
        return _tsv(path, cache)
    if suffix == ".txt":
        return _source("mme", "a text file: a category of MME", path, layouts.mme)
    if suffix == ".jsonl":
        return _lines(path)
    if suffix != ".json":
        raise SettingError("data", f"{path} is neither .tsv, .json, .jsonl nor .txt", "name a benchmark's file")
    first = next(read_json_lines(path), None)
    return _lines(path) if first and first.values is not None and _is_record(first.values) else _whole(path)


def _source(kind: str, reason: str, path: Path, read: Read) -> Source:
    return Source(kind, reason, lambda _: read(path), (kind,))


def _is_record(values: dict) -> bool:
    """Whether the first line of a file is a record, and not a whole file in one line."""
    return "data" not in values and not all(isinstance(value, dict) for value in values.values())


def _folder(path: Path) -> Source:
    found = [(kind, read) for pattern, kind, read in FOLDERS if any(path.glob(pattern))]
    if len(found) != 1:
        problem = f"files of {' and of '.join(kind for kind, _ in found)}" if found else "no files of a benchmark"
        raise SettingError("data", f"the folder {path} holds {problem}", "name one file")
    kind, read = found[0]
    return _source(kind, f"a folder of {kind}'s files", path, read)


def _tsv(path: Path, cache: str | Path | None) -> Source:
    columns, kinds = tsv.check_columns(path), tuple(kind for kind, row in KINDS.items() if row.stems or kind == "own")
    kind = next(iter(_named((path.stem,))), "own")
    name = f"the name of {kind}" if kind != "own" else "no benchmark's name"
    reason = f"a TSV file with {name} and the columns {', '.join(columns[:8])}"
    return Source(kind, reason, lambda name: tsv.drafts(path, name, cache), kinds)


def _named(names: Iterable[str]) -> list[str]:
    """The kinds that one of these names begins with."""
    return [kind for name in names for kind, row in KINDS.items() if row.stems and name.lower().startswith(row.stems)]


def _keys(record: object) -> list[str]:
    if not isinstance(record, dict):
        return []
    return [*record, ANSWER_INDEX] if type(record.get("answer")) is int else list(record)


def _by_keys(path: Path, record: object, table: Layouts) -> Source | None:
    keys = _keys(record)
    for needed, kind, read in table:
        if needed <= set(keys):
            return _source(kind, f"its first record has the keys {', '.join(keys[:8])}", path, read)
    return None


def _whole(path: Path) -> Source:
    """A file that is one array or one object."""
    value = read_json(path)
    data = value.get("data") if isinstance(value, dict) else None
    if isinstance(value, list):
        record, table = next(iter(value), None), ARRAYS
    elif isinstance(data, list):
        record, table = next(iter(data), None), DATA_ARRAYS
    else:
        record, table = next(iter(value.values()), None) if isinstance(value, dict) else None, OBJECTS
    found = _by_keys(path, record, table)
    if found is None:
        keys = ", ".join(_keys(record)[:8]) or "none"
        known = ", ".join(kind for _, kind, _ in (*ARRAYS, *DATA_ARRAYS, *OBJECTS))
        raise SettingError(
            "kind",
            f"{path}: the keys of its first record ({keys}) are those of no benchmark; known in this form: {known}",
            "a file of your own holds one object per line, or is a TSV file",
        )
    return found


def _lines(path: Path) -> Source:
    """A file with an object per line; the first that can be read tells the kind."""
    record = next((row.values for row in read_json_lines(path) if row.values is not None), None)
    if record is None:
        raise SettingError("data", f"{path} holds no line that is a JSON object", "write one object per line")
    found = _by_keys(path, record, LINES)
    if found:
        return found
    reason = f"its first record has the keys {', '.join(list(record)[:8])}"
    if "question" not in record or not {"answer", "answers"} & record.keys():
        problem = f"{path}: {reason}; 'question' and 'answer' or 'answers' are needed"
        raise SettingError("kind", problem, f"a file of your own has the keys {', '.join(own.KEYS)}")
    if layouts.CONVERTED_ID not in record:
        return Source("own", f"{reason}: a file of your own", lambda _: own.drafts(read_json_lines(path)), ("own",))
    named = _named((path.stem, path.resolve().parent.name))
    return Source(
        named[0] if named else None,
        f"{reason}, as converted files of several benchmarks have",
        lambda _: layouts.converted(path),
        ("textvqa", "docvqa", "chartqa"),
    )
