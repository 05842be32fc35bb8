"""Bytes of remote images on a disk, each content once, within a limit.

    DIRECTORY/names/ab/HASH-OF-NAME          a link to ../../contents/cd/HASH-OF-BYTES
    DIRECTORY/contents/cd/HASH-OF-BYTES      the bytes; the time of the file is that of their last use

Entries appear whole, by renaming, and are compared with their hash when they are read, so any number of processes may
use a directory and be killed at any moment. The limit is divided among 256 folders of contents: a process that has
written a 64th of a folder's share looks at that folder, and removes what has been used least recently, down to 7/8 of
the share. A name is trusted for a day and then read from the store again, since the object may have changed.

Kept libraries for this (diskcache) hold entries in SQLite, which isn't safe on network disks, and once for each name.
"""

import contextlib
import logging
import os
import secrets
import time
from pathlib import Path

from mmengine.logging import print_log

from ..cache import bytes_hash, text_hash

GIB = 1 << 30
TRUSTED_SECONDS = 86_400  # that a name leads to the same bytes
PARTS = 256  # folders of contents
KEPT, LOOKED_AFTER = 7 / 8, 1 / 64  # of a folder's share


class ByteCache:
    """Bytes by name, see the module.

    Args:
        directory: of the entries.
        limit: bytes of all entries together.
    """

    def __init__(self, directory: str | os.PathLike, limit: int):
        self.directory, self.share = Path(directory), limit / PARTS
        self._written: dict[str, float] = {}  # bytes of each folder since this process looked at it
        self._warned = False

    def get(self, name: str) -> bytes | None:
        """The bytes of a name; None where they aren't there, or are too old to be trusted."""
        link = self._link(name)
        try:
            if time.time() - link.lstat().st_mtime > TRUSTED_SECONDS:
                return None
            content = link.parent / os.readlink(link)
            data = content.read_bytes()
            if bytes_hash(data) != content.name:  # of a disk that failed
                content.unlink(missing_ok=True)
                return None
            os.utime(content)
        except OSError:  # it isn't there, or has just been removed
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep the bytes of a name, unless they alone would fill a folder's share."""
        if len(data) > self.share * KEPT:
            return
        code = bytes_hash(data)
        content, link = self.directory / "contents" / code[:2] / code, self._link(name)
        try:
            if not content.exists():
                self._write(content, lambda beside: beside.write_bytes(data))
                self._count(content.parent, len(data))
            self._write(link, lambda beside: beside.symlink_to(os.path.relpath(content, link.parent)))
        except OSError as error:
            if not self._warned:  # a run goes on without a cache
                self._warned = True
                text = f"{self.directory}: images of stores aren't kept, it can't be written ({error.strerror})"
                print_log(f"{text}; make room, or set image_cache_gib=0", "current", logging.WARNING)

    def _link(self, name: str) -> Path:
        code = text_hash(name)
        return self.directory / "names" / code[:2] / code

    @staticmethod
    def _write(path: Path, write) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            write(beside)
            os.replace(beside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()

    def _count(self, folder: Path, size: int) -> None:
        written = self._written.get(folder.name, self.share)  # a process looks at a folder that it writes to first
        self._written[folder.name] = written = written + size
        if written > self.share * LOOKED_AFTER:
            self._written[folder.name] = 0
            self._shrink(folder)

    def _shrink(self, folder: Path) -> None:
        """Remove the contents that have been used least recently, and names that lead nowhere."""
        contents = sorted(_entries(folder), key=lambda entry: entry[1])
        total = sum(size for _, _, size in contents)
        if total > self.share:
            for path, _, size in contents:
                if total <= self.share * KEPT:
                    break
                path.unlink(missing_ok=True)
                total -= size
        oldest = time.time() - TRUSTED_SECONDS
        for path, used, _ in _entries(self.directory / "names" / folder.name):
            if used < oldest or not path.exists():
                path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[tuple[Path, float, int]]:
    """(path, time, bytes) of the files and links in a folder."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                status = entry.stat(follow_symlinks=False)
                found.append((Path(entry.path), status.st_mtime, status.st_size))
    return found
