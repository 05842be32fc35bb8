"""Where each record of an annotation file lies: three numbers per record, never a list of records.

A file that begins with `[` is a JSON array, any other is JSON lines, whatever its name. Lines are found by their breaks
and checked when they are read. An array is decoded once, in windows, so a broken one is refused with its line.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ...errors import RecordError, SettingError, SourceError, out_of_files
from ...files import build_once, content_hash, get_cache_dir, text_hash
from .foreign import renamed

BLOCK = 1 << 24  # bytes read at a time
CACHED_FROM = 1 << 20  # bytes; smaller files are indexed at every start
MOST_BYTES = 50 << 20  # of a record: a text that long is a mistake, and tokenizing it takes minutes and gigabytes
HEAD = 1 << 16  # bytes that tell an annotation file from others
SPACE = re.compile(r"[ \t\r\n]*").match
BOM = b"\xef\xbb\xbf"
FORM = "one JSON object per line, without commas between the lines, or one JSON array per file"


@dataclass(frozen=True)
class OffsetIndex:
    """Offsets of the records of one file; a `RecordSource` (see `opening`)."""

    path: str  # the annotation file, as messages call it
    file: str  # where its content is, uncompressed
    spans: np.ndarray  # int64 `[3, R]`: the byte at which each record starts, its length, and its line, from 1
    stamp: tuple[int, ...]  # of the file when it was indexed, see `stamp_of`
    columns: Mapping[str, str]  # names here -> names in the records, see `foreign.renamed`

    def __len__(self) -> int:
        return self.spans.shape[1]

    def source(self, row: int) -> str:
        """`file:line` of a record."""
        return f"{self.path}:{self.spans[2, row]}"

    def fingerprint(self) -> str:
        """Hash of the content."""
        return text_hash(content_hash(self.file), json.dumps(self.columns))

    def read(self, row: int) -> bytes:
        """The bytes of a record. Opens the file each time, since processes can't share a handle.

        Raises:
            RecordError: the record has more than `MOST_BYTES`.
            SourceError: the file has gone or changed since it was indexed.
        """
        start, length, _ = self.spans[:, row].tolist()
        if length > MOST_BYTES:
            problem = f"{length:,} bytes; at most {MOST_BYTES:,} are read of a record"
            raise RecordError("record_bytes", problem, "divide it, or remove it", self.source(row))
        try:
            with open(self.file, "rb") as file:
                check_unchanged(file.fileno(), self.stamp, self.path)
                return os.pread(file.fileno(), length, start)
        except SourceError:
            raise
        except OSError as error:
            told = f"can't be read any more ({error.strerror}); keep annotation files in place while they are used"
            raise out_of_files(error, RecordError, self.source(row)) or SourceError(f"{self.path}: {told}") from None

    def parse(self, row: int) -> object:
        """The decoded JSON of a record; errors as `read` and `parse_json`."""
        return renamed(parse_json(self.read(row), self.source(row)), self.columns)


def stamp_of(path: str | int) -> tuple[int, ...]:
    """Size, time of change and inode of a file: one of them changes when it is edited or replaced."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def check_unchanged(file: str | int, stamp: tuple[int, ...], path: str) -> None:
    """Raise a `SourceError` where a file isn't the one that was opened."""
    if stamp_of(file) != stamp:
        raise SourceError(f"{path}: the file has changed since it was opened; start again when nothing writes to it")


def open_index(path: str, file: str = "", columns: Mapping[str, str] | None = None) -> OffsetIndex:
    """The records of an annotation file; the index of a large file is kept on disk and memory-mapped.

    Args:
        path, file, columns: as `OffsetIndex` has them; without `file` the content is in `path`.

    Raises:
        SettingError: the file is missing, empty, not readable, or neither a JSON array nor JSON lines.
        RecordError: a JSON array that is broken, isn't closed, or has something after it.
    """
    file = file or path
    stamp = stamp_of(file)
    if stamp[0] < CACHED_FROM:
        found = _scan(file, path)
    else:
        kept = get_cache_dir() / f"offsets-{content_hash(file)}" / "index.npy"
        found = np.load(build_once(kept, lambda beside: np.save(beside, _scan(file, path))), mmap_mode="r")
    check_unchanged(file, stamp, path)
    if not found.size:
        raise SettingError("annotation_file", "it holds no records", "give it records", f"{path}:1")
    return OffsetIndex(path, file, found, stamp, dict(columns or {}))


def _scan(file: str, path: str) -> np.ndarray:
    """`OffsetIndex.spans` of a file; arguments and errors as `open_index`."""
    with open(file, "rb") as opened:
        head = opened.read(HEAD)
    first = head.removeprefix(BOM).lstrip()[:1]
    if not first:
        return np.zeros((3, 0), np.int64)
    if first not in b"[{":
        problem = f"is neither a JSON array nor JSON lines: it begins with {head[:20]!r}"
        remedy = "give a .json array or a .jsonl file with one object per line"
        raise SettingError("annotation_file", problem, remedy, f"{path}:1")
    return _scan_array(file, path) if first == b"[" else _scan_lines(file)


def _scan_lines(path: str) -> np.ndarray:
    spans, start = array("q"), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            mark = len(BOM) * (number == 1 and line.startswith(BOM))
            if not line[mark:].isspace():
                spans.extend((start + mark, len(line) - mark - line.endswith(b"\n"), number))
            start += len(line)
    return np.array(spans, np.int64).reshape(-1, 3).T.copy()


def _scan_array(name: str, path: str) -> np.ndarray:
    """Spans of the elements of a JSON array, each decoded once in a window of the file.

    The text is taken for Latin-1, where a character is a byte: quotes, brackets and commas are the same as in UTF-8.
    """
    decode, spans = json.JSONDecoder().raw_decode, array("q")
    with open(name, "rb") as file:
        text = file.read(BLOCK).decode("latin-1")
        base, at, line, counted, more, mark = 0, text.index("[") + 1, 1, 0, True, ","  # `line` is that of `counted`

        def broken(problem: str, place: int) -> NoReturn:
            where = f"{path}:{line + text.count(chr(10), counted, place)}"
            raise RecordError("json", f"the JSON array is broken: {problem}", "correct it or fetch it again", where)

        while mark != "]":
            at = SPACE(text, at).end()
            line, counted = line + text.count("\n", counted, at), at
            try:
                end = at if not spans and text.startswith("]", at) else decode(text, at)[1]
                after = SPACE(text, end).end()
                mark, wrong = text[after : after + 1], ("no comma between records", after)
            except json.JSONDecodeError as error:
                is_cut = more and (error.pos >= len(text) - 10 or error.msg.startswith("Unterminated"))
                mark, wrong = "" if is_cut else "?", (error.msg, error.pos)
            except (ValueError, RecursionError) as error:  # integers of many digits; nested too deeply
                mark, wrong = "?", (str(error), at)
            if not mark and more:  # cut off by the window's end
                data = file.read(max(BLOCK, len(text)))
                text, base, more = text[at:] + data.decode("latin-1"), base + at, bool(data)
                at = counted = 0
            elif not mark:
                broken("it isn't closed, the file ends inside it", len(text))
            elif mark not in ",]":
                broken(*wrong)
            else:
                spans.extend((base + at, end - at, line) if end > at else ())
                at = after + 1
        if rest := (text[at:] + file.read(HEAD).decode("latin-1")).strip():
            broken(f"something follows it: {rest[:20]!r}", at)
    return np.array(spans, np.int64).reshape(-1, 3).T.copy()


def parse_json(data: bytes, source: str) -> object:
    """Decode one record's bytes; `RecordError` for what isn't UTF-8 or JSON, a key twice, or nesting too deep."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except KeyError as error:
        problem = f"the key {error.args[0]!r} occurs twice in an object"
        raise RecordError("json_duplicate_key", problem, "keep one of them", source) from None
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte 0x{data[error.start]:02x} at column {error.start + 1})"
        raise RecordError("encoding", problem, "save the file as UTF-8", source) from None
    except (ValueError, RecursionError) as error:  # such as integers of many digits, and objects nested too deeply
        raise RecordError("json", f"not JSON: {error}", FORM, source) from None


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON; a KeyError for a key that occurs twice, of which Python's reader would keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise KeyError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found
