"""Annotation files in stores: fetched whole into the cache, and opened there as files are.

    s3://bucket/a.jsonl  ->  CACHE/fetched/HASH-OF-STORE-AND-URL/HASH-OF-VERSION/a.jsonl

A file is fetched again where its version (size, tag, time) has changed; where a store tells neither tag nor time, at
each start. Messages name the URL, and never the copy. Another version goes when nobody has read it for a week.
"""

import contextlib
import os
import posixpath
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...data_names import masked
from ..cache import bytes_hash, locked, text_hash, write_whole, writing
from ..errors import DataError, MediaError, SettingError
from ..unused import is_unused, keep_marked, mark_used
from .identity import url_key
from .store import Store

if TYPE_CHECKING:
    from ..records.opening import RecordSource

BLOCK = 1 << 24  # bytes read at a time
SAY_AFTER = 10.0  # seconds between two lines about the progress
KEPT_SECONDS = 7 * 86_400  # that a version is kept after its last use


def fetch(store: Store, cache_dir: str | os.PathLike) -> str:
    """The path of a copy of the object that a store's root names, made where the cache doesn't hold its version.

    Of several processes one fetches and the others wait.

    Raises:
        SettingError: it isn't there, can't be reached or changes meanwhile, or the cache can't be written.
    """
    folder = Path(cache_dir) / "fetched" / store.key()
    name = posixpath.basename(urlsplit(store.root).path) or "file"
    with _about_a_file(store):
        stamp = store.stamp("")
        if stamp is None:
            _say(f"fetching {store.shown}, whose store tells no version")
            whole = store.read("")
            target, write = folder / bytes_hash(whole) / name, lambda beside: beside.write_bytes(whole)
        else:
            target, write = folder / text_hash(str(stamp)) / name, lambda beside: _fetch(store, beside, stamp)
        mark_used(target.parent)
        if not target.exists():
            with locked(folder.with_suffix(".lock")):
                if not target.exists():  # another process may have fetched it meanwhile
                    with writing(target):
                        write_whole(target, write)
                    _remove_old(folder, target)
    return str(target)


@contextlib.contextmanager
def _about_a_file(store: Store) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise SettingError("data_paths", error.problem, error.remedy, error.place) from None


def _fetch(store: Store, target: Path, stamp: list) -> None:
    size = stamp[0] if isinstance(stamp[0], int) else None
    total = "" if size is None else f" ({size / 1e6:,.1f} MB)"
    _say(f"fetching {store.shown}{total} into {target.parent}")
    said, done = time.monotonic(), 0
    with open(target, "wb") as file:
        while True:
            block = store.read("", done, done + BLOCK)
            if len(block) > BLOCK:  # a store that gives whole objects only
                file.seek(0)
                file.truncate()
                done = 0
            file.write(block)
            done += len(block)
            if len(block) != BLOCK:
                break
            if time.monotonic() - said > SAY_AFTER:
                said = time.monotonic()
                _say(f"fetching {store.shown}: {done / 1e6:,.1f} MB of{total or ' an unknown size'}")
    if done != (size or done) or store.stamp("") != stamp:
        problem = f"{done:,} bytes came of {size or 0:,}, or it has changed meanwhile"
        raise SettingError("data_paths", problem, "start again when nothing writes to it any more", store.shown)
    _say(f"fetched {store.shown}: {done / 1e6:,.1f} MB")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _remove_old(folder: Path, target: Path) -> None:
    for old in folder.iterdir():
        if old != target.parent and is_unused(old, KEPT_SECONDS):
            shutil.rmtree(old, ignore_errors=True)


class FetchedRecords:
    """The records of a copy under the name of what was copied; a `RecordSource` (see `records.opening`).

    Args:
        open_copy: opens the copy.
        copy: path of the copy.
        url: of what was copied.

    Attributes:
        path: what messages call it: the URL without credentials.
        key: hash by which reject lists know it; the URL may hold credentials.

    Raises:
        DataError: as `open_copy`.
    """

    def __init__(self, open_copy: Callable[[str], "RecordSource"], copy: str, url: str):
        self.path, self.key, self.copy = masked(url), url_key(url), copy
        with self._named():
            self.inner = open_copy(copy)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        mark_used(os.path.dirname(self.copy))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors about the copy as errors about what was copied."""
        try:
            yield
        except DataError as error:
            texts = (text.replace(self.copy, self.path) for text in (error.problem, error.remedy, error.place))
            raise type(error)(error.reason, *texts) from None

    def __len__(self) -> int:
        return len(self.inner)

    def source(self, row: int) -> str:
        """`url:line` of a record."""
        return self.inner.source(row).replace(self.copy, self.path)

    def line(self, row: int) -> int:
        """The number in `source`, counted from 1."""
        return self.inner.line(row)

    def fingerprint(self, cache_dir: str) -> str:
        """Hash of the records, as that of the copy."""
        return self.inner.fingerprint(cache_dir)

    def own_images(self, folder: Any) -> Any:
        """What gives images by the names in these records."""
        return self.inner.own_images(folder)

    def parse(self, row: int) -> object:
        """The decoded record.

        Raises:
            RecordError: it can't be read.
        """
        keep_marked()
        with self._named():
            return self.inner.parse(row)

    @contextlib.contextmanager
    def reader(self) -> Iterator["_FetchedReader"]:
        """For reading records in sequence."""
        with self.inner.reader() as reader:
            yield _FetchedReader(self, reader)


class _FetchedReader:
    def __init__(self, records: FetchedRecords, reader: Any):
        self.records, self.reader = records, reader

    def parse(self, row: int) -> object:
        keep_marked()
        with self.records._named():
            return self.reader.parse(row)
