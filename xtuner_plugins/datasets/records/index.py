"""Where each record of an annotation file lies: three numbers per record, never a list of records.

A file that begins with `[` is a JSON array, any other is JSON lines, whatever its name. The scan looks only at bytes,
in blocks, so that it needs little memory for files of any size; contents are checked record by record.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..cache import content_hash, locked, open_array, save
from ..errors import RecordError, SettingError, out_of_files
from ..images.media import ImageFolder
from ..unused import mark_used
from .record_json import COMMA_REMEDY, ends_with_comma, parse_json

BLOCK = 1 << 24  # bytes scanned at a time
READ_AHEAD = 1 << 18  # bytes read at a time where records are read one after another
CACHED_FROM = 1 << 20  # bytes; smaller files are scanned at every start
QUOTE, BACKSLASH, NEWLINE, COMMA = (ord(char) for char in '"\\\n,')
OPEN, CLOSE = (ord("["), ord("{")), (ord("]"), ord("}"))
SPACES = np.frombuffer(b" \t\r\n", np.uint8)
HEAD = 1 << 16  # bytes that tell an annotation file from others
FOREIGN = {  # first bytes of files that people name by mistake
    b"\x1f\x8b": "compressed (gzip)",  # `opening` takes these two and hands over what they hold
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"version https://git-lfs": "a pointer of git-lfs (the file itself wasn't fetched)",
}


@dataclass(frozen=True)
class OffsetIndex:
    """Offsets of the records of one file; a `RecordSource` (see `opening`).

    Attributes:
        path: the annotation file.
        starts, lengths: int64 `[R]`, bytes.
        lines: int64 `[R]`, the line on which each record starts, counted from 1.
        unpacked: where the bytes of a compressed file are, uncompressed; '' for any other.
    """

    path: str
    starts: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray
    unpacked: str = ""

    @property
    def file(self) -> str:
        """The file that is read."""
        return self.unpacked or self.path

    def __len__(self) -> int:
        return len(self.starts)

    def source(self, index: int) -> str:
        """`file:line` of a record."""
        return f"{self.path}:{self.line(index)}"

    def line(self, index: int) -> int:
        """The line on which a record starts, counted from 1."""
        return int(self.lines[index])

    def fingerprint(self, cache_dir: str) -> str:
        """Hash of the content."""
        return content_hash(self.file, cache_dir)

    def own_images(self, folder: ImageFolder) -> ImageFolder:
        """Where the names of images in the records lead: to the image folder."""
        return folder

    def reader(self) -> "SequentialReader":
        """For reading records in sequence."""
        return SequentialReader(self)

    def read(self, index: int) -> bytes:
        """The bytes of a record. Opens the file each time, since processes can't share a handle.

        Raises:
            RecordError: the file has become shorter or has gone.
        """
        try:
            with open(self.file, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), int(self.lengths[index]), int(self.starts[index]))
        except OSError as error:
            raise out_of_files(error, RecordError, self.source(index)) or RecordError(
                "file_gone",
                f"can't be read any more ({error.strerror})",
                "keep annotation files in place while they are used",
                self.source(index),
            ) from None
        if len(data) != self.lengths[index]:
            raise RecordError(
                "file_changed",
                "the file has become shorter since it was opened",
                "start again, the file is then indexed again",
                self.source(index),
            )
        return data

    def parse(self, index: int) -> object:
        """The decoded JSON of a record.

        Raises:
            RecordError: not UTF-8 or not JSON.
        """
        return parse_json(self.read(index), self.source(index))


class SequentialReader:
    """Reads records in sequence, through one handle and in blocks; the bytes are those of `OffsetIndex.read`."""

    def __init__(self, index: OffsetIndex):
        self.index = index
        self._file, self._block, self._base = None, b"", 0

    def __enter__(self) -> "SequentialReader":
        return self

    def __exit__(self, *error) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
            RecordError: as `OffsetIndex.read`.
        """
        start, length = int(self.index.starts[index]), int(self.index.lengths[index])
        if not self._base <= start <= start + length <= self._base + len(self._block):
            try:
                self._file = self._file or open(self.index.file, "rb", buffering=0)
                self._block, self._base = os.pread(self._file.fileno(), max(READ_AHEAD, length), start), start
            except OSError:
                self._block = b""
        data = self._block[start - self._base : start - self._base + length]
        return data if len(data) == length else self.index.read(index)

    def parse(self, index: int) -> object:
        """The decoded JSON of a record.

        Raises:
            RecordError: as `OffsetIndex.parse`.
        """
        return parse_json(self.read(index), self.index.source(index))


def open_index(path: str | os.PathLike, cache_dir: str | os.PathLike, *, unpacked: str = "") -> OffsetIndex:
    """As `scan`, but the result of a large file is kept on disk and memory-mapped.

    Args:
        path: of the annotation file.
        cache_dir: where results are kept.
        unpacked: where its content is if it is compressed.

    Raises:
        SettingError, RecordError: as `scan`.
    """
    path = os.fspath(path)
    file = unpacked or path
    if not os.path.isfile(file) or os.path.getsize(file) < CACHED_FROM:
        return replace(scan(file), path=path, unpacked=unpacked)
    directory = Path(cache_dir) / f"offsets-{content_hash(file, cache_dir)}"
    mark_used(directory)
    files = [directory / f"{name}.npy" for name in ("starts", "lengths", "lines")]
    if not all(kept.exists() for kept in files):
        with locked(directory.with_suffix(".lock")):
            if not all(kept.exists() for kept in files):  # another process may have scanned it meanwhile
                found = scan(file)
                for kept, array in zip(files, (found.starts, found.lengths, found.lines), strict=True):
                    save(kept, array)
    return OffsetIndex(path, *map(open_array, files), unpacked)


def scan(path: str | os.PathLike) -> OffsetIndex:
    """Find the records of an annotation file.

    Raises:
        SettingError: the file is missing, empty, not readable, or neither a JSON array nor JSON lines.
        RecordError: a JSON array that isn't closed, or with something after it.
    """
    path = os.fspath(path)
    first = _first_byte(path)
    found = _scan_array(path) if first == b"[" else _scan_lines(path)
    starts, ends, lines = (np.concatenate(part) if part else np.zeros(0, np.int64) for part in found)
    if len(starts) == 0:
        raise _unusable(path, "holds no records", "give it records")
    index = OffsetIndex(path, starts, ends - starts, lines)
    if first == b"{":
        _refuse_one_object(index)
    return index


def _unusable(path: str, problem: str, remedy: str) -> SettingError:
    return SettingError("annotation_file", problem, remedy, f"{path}:1")


def _first_byte(path: str) -> bytes:
    """The first character of an annotation file, `[` or `{`.

    Raises:
        SettingError: it is no annotation file.
    """
    if os.path.isdir(path):
        raise _unusable(path, "is a folder, not an annotation file", "name the file in it")
    if not os.path.isfile(path):
        raise _unusable(path, "the annotation file isn't there", "correct data_paths")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise _unusable(path, f"can't be read ({error.strerror})", "give it read permission") from None
    return first_byte_of(head, path)


def first_byte_of(head: bytes, path: str) -> bytes:
    """As `_first_byte`, of the first bytes of the file."""
    for magic, kind in FOREIGN.items():
        if head.startswith(magic):
            in_place = "name it in data_paths as it is, uncompressed: its rows are read in place"
            remedy = in_place if kind == "Parquet" else "turn it into JSON lines first"
            raise _unusable(path, f"is {kind}, not an annotation file", remedy)
    if head[257:262] == b"ustar":
        remedy = "name it *.tar, uncompressed: shards are read in place, and images of a tar as image_folders"
        raise _unusable(path, "is a tar archive, not an annotation file", remedy)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if not first:
        raise _unusable(path, "the annotation file is empty", "give it records")
    if first not in b"[{":
        raise _unusable(
            path,
            f"is neither a JSON array nor JSON lines: it begins with {head[:20]!r}",
            "give a .json array or a .jsonl file with one object per line",
        )
    return first


def _refuse_one_object(index: OffsetIndex) -> None:
    """Refuse an object over many lines and lines that end with commas, whose every line would be a broken record.

    Raises:
        SettingError: the first line is an object and a comma; or it isn't complete, and the second is no record either.
    """
    if ends_with_comma(index.read(0)):
        raise SettingError("annotation_file", "a comma follows the object on the line", COMMA_REMEDY, index.source(0))
    if not index.read(0).rstrip().endswith((b"{", b"[", b",")):
        return
    for row in range(min(2, len(index))):
        try:
            index.parse(row)
            return
        except RecordError:
            continue
    raise SettingError(
        "annotation_file",
        "one JSON object over several lines, not one per line",
        "put each record on a line of its own, or all of them into an array: [{...}, {...}]",
        index.source(0),
    )


def _blocks(path: str):
    """(offset, uint8 array) of each block of a file."""
    offset = 0
    with open(path, "rb") as file:
        while data := file.read(BLOCK):
            yield offset, np.frombuffer(data, np.uint8)
            offset += len(data)


def _scan_lines(path: str) -> tuple[list, list, list]:
    """Spans of the lines that aren't blank."""
    breaks, size, blank = [], 0, None
    for offset, block in _blocks(path):
        breaks.append(np.flatnonzero(block == NEWLINE) + offset)
        size = offset + len(block)
    breaks = np.concatenate(breaks)
    with open(path, "rb") as file:
        skip = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        starts = np.concatenate([[skip], breaks + 1]).astype(np.int64)
        ends = np.concatenate([breaks, [size]]).astype(np.int64)
        lines = np.arange(1, len(starts) + 1)
        blank = ends <= starts
        data = np.memmap(file, np.uint8, "r")
        spaced = np.flatnonzero(~blank)
        spaced = spaced[np.isin(data[starts[spaced]], SPACES)]  # the others don't begin with white space
        for index in spaced:
            blank[index] = not bytes(data[starts[index] : ends[index]]).strip()
    keep = ~blank
    return [starts[keep]], [ends[keep]], [lines[keep]]


def _scan_array(path: str) -> tuple[list, list, list]:
    """Spans of the elements of a JSON array, found by brackets and commas outside strings.

    A quote opens or closes a string unless an odd number of backslashes precedes it. So the parity of the quotes so far
    says what is inside a string, the running sum of the brackets outside strings is the depth, and the commas at depth
    1 separate the elements. State is carried from block to block; elements may be of any length.
    """
    depth, in_string, run, line = 0, False, 0, 1
    starts, ends, lines = [], [], []
    begin = close = None  # where the current element may begin; where the array ended
    begin_line = 1
    for offset, block in _blocks(path):
        inside, in_string, run = _string_mask(block, in_string, run)
        outside = ~inside
        steps = np.zeros(len(block), np.int8)
        steps[(block == OPEN[0]) | (block == OPEN[1])] = 1
        steps[(block == CLOSE[0]) | (block == CLOSE[1])] = -1
        steps[inside] = 0
        marks = np.flatnonzero(steps)
        levels = depth + np.cumsum(steps[marks].astype(np.int64))
        newlines = np.flatnonzero(block == NEWLINE)
        commas = np.flatnonzero((block == COMMA) & outside)
        before = np.searchsorted(marks, commas) - 1
        commas = commas[np.where(before >= 0, levels[before] if len(levels) else depth, depth) == 1]
        cuts = list(commas + offset)
        if begin is None and len(marks):  # the opening bracket of the array itself
            begin, begin_line = marks[0] + offset + 1, line + int(np.searchsorted(newlines, marks[0]))
        if close is None and len(marks) and (levels <= 0).any():
            close = int(marks[np.argmax(levels <= 0)]) + offset
            cuts = [cut for cut in cuts if cut < close] + [close]
        if cuts:
            cut_lines = line + np.searchsorted(newlines, np.array(cuts) - offset)
            starts.append(np.array([begin, *(cut + 1 for cut in cuts[:-1])], np.int64))
            ends.append(np.array(cuts, np.int64))
            lines.append(np.array([begin_line, *cut_lines[:-1]], np.int64))
            begin, begin_line = cuts[-1] + 1, int(cut_lines[-1])
        if len(levels):
            depth = int(levels[-1])
        line += len(newlines)
        if close is not None:
            break
    if close is None:
        last = f"{path}:{line}"
        raise RecordError(
            "json",
            "the JSON array isn't closed: the file ends inside it",
            "fetch the file again, it looks cut off",
            last,
        )
    return _trim(path, starts, ends, lines, close)


def _string_mask(block: np.ndarray, in_string: bool, run: int) -> tuple[np.ndarray, bool, int]:
    """Which bytes lie inside strings, and the state after the block (`run`: number of backslashes at its end)."""
    quotes = np.flatnonzero(block == QUOTE)
    backslashes = block == BACKSLASH
    if backslashes.any() or run:
        previous = np.where(quotes > 0, backslashes[quotes - 1], run > 0)
        suspects = quotes[previous]
        lengths = np.zeros(len(suspects), np.int64)
        active = np.arange(len(suspects))
        while len(active):  # one step per backslash of the longest run
            position = suspects[active] - 1 - lengths[active]
            hit = np.where(position >= 0, backslashes[np.maximum(position, 0)], False)
            lengths[active[position < 0]] += run  # the run began in the block before
            active = active[hit]
            lengths[active] += 1
        escaped = suspects[lengths % 2 == 1]
        quotes = np.setdiff1d(quotes, escaped, assume_unique=True)
    parity = np.zeros(len(block), np.uint8)
    parity[quotes] = 1
    parity[0] += in_string
    inside = (np.cumsum(parity, dtype=np.uint8) & 1).astype(bool)  # wrapping around at 256 keeps the parity
    tail = 0
    while tail < len(block) and backslashes[-1 - tail]:
        tail += 1
    return inside, bool(inside[-1]), tail + run if tail == len(block) else tail


def _trim(path: str, starts: list, ends: list, lines: list, close: int) -> tuple[list, list, list]:
    """Strip white space around elements, so that `lines` holds the lines of the records themselves."""
    first, last, line = np.concatenate(starts), np.concatenate(ends), np.concatenate(lines)
    with open(path, "rb") as file:
        data = np.memmap(file, np.uint8, "r") if os.path.getsize(path) else np.zeros(0, np.uint8)
        for edge, step, look in ((first, 1, 0), (last, -1, -1)):
            active = np.flatnonzero(first < last)
            while len(active):
                byte = data[edge[active] + look]
                active, byte = active[np.isin(byte, SPACES)], byte[np.isin(byte, SPACES)]
                if step == 1:
                    line[active] += byte == NEWLINE
                edge[active] += step
                active = active[first[active] < last[active]]
        rest = bytes(data[close + 1 : close + 1 + 4096]).strip()
    if rest:
        where = f"{path}:{line[-1]}" if len(line) else path
        raise RecordError("json", f"something follows the JSON array: {rest[:20]!r}", "one array per file", where)
    empty = first >= last
    if empty.any() and not (len(first) == 1):
        number = int(np.argmax(empty))
        raise RecordError("json", "an empty place between commas", "remove the extra comma", f"{path}:{line[number]}")
    return [first[~empty]], [last[~empty]], [line[~empty]]
