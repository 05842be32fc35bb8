"""Bytes of remote images on a disk, each content once, within a limit.

    DIRECTORY/names/ab/HASH-OF-NAME          a link to ../../contents/cd/HASH-OF-BYTES
    DIRECTORY/contents/cd/HASH-OF-BYTES      the bytes; the time of the file is that of their last use

Entries appear whole, by renaming, and are compared with their hash when they are read, so any number of processes may
use a directory and be killed at any moment. The 256 folders of contents make up parts, each with its share of the
limit: as many as leave each at least 512 MiB, so that whatever is read of a store (256 MiB at most) fits into one. A
process that has written a 64th of a share looks at the folders of that part, and removes what has been used least
recently, down to 7/8 of the share. A name is trusted for a day and then read from the store again, since the object may
have changed.

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
FOLDERS = 256  # of contents
LEAST_SHARE = 1 << 29  # bytes of a part
KEPT, LOOKED_AFTER = 7 / 8, 1 / 64  # of a part's share


class ByteCache:
    """Bytes by name, see the module.

    Args:
        directory: of the entries.
        limit: bytes of all entries together.

    Attributes:
        num_parts: a power of two, 1 to `FOLDERS`.
        share: bytes of a part.
    """

    def __init__(self, directory: str | os.PathLike, limit: int):
        self.directory, self.num_parts = Path(directory), FOLDERS
        while self.num_parts > 1 and limit / self.num_parts < LEAST_SHARE:
            self.num_parts //= 2
        self.share = limit / self.num_parts
        self._written: dict[int, float] = {}  # bytes of each part since this process looked at it
        self._warned: set[str] = set()  # what this process has warned of

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
        """Keep the bytes of a name, unless they alone would fill a part's share, which is said once."""
        if len(data) > (most := self.share * KEPT):
            self._warn_once(f"images above {most / (1 << 20):.3g} MiB aren't kept; raise image_cache_gib to keep them")
            return
        code = bytes_hash(data)
        content, link = self.directory / "contents" / code[:2] / code, self._link(name)
        try:
            if not content.exists():
                self._write(content, lambda beside: beside.write_bytes(data))
                self._count(int(code[:2], 16) * self.num_parts // FOLDERS, len(data))
            self._write(link, lambda beside: beside.symlink_to(os.path.relpath(content, link.parent)))
        except OSError as error:
            text = f"images of stores aren't kept, it can't be written ({error.strerror})"
            self._warn_once(f"{text}; make room, or set image_cache_gib=0")  # a run goes on without a cache

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            print_log(f"{self.directory}: {text}", "current", logging.WARNING)

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

    def _count(self, part: int, size: int) -> None:
        written = self._written.get(part, self.share)  # a process looks at a part that it writes to first
        self._written[part] = written = written + size
        if written > self.share * LOOKED_AFTER:
            self._written[part] = 0
            self._shrink(part)

    def _shrink(self, part: int) -> None:
        """Remove the contents that have been used least recently, and names that lead nowhere."""
        width = FOLDERS // self.num_parts
        folders = [f"{number:02x}" for number in range(part * width, (part + 1) * width)]
        contents = [entry for name in folders for entry in _entries(self.directory / "contents" / name)]
        total = sum(size for _, _, size in contents)
        if total > self.share:
            for path, _, size in sorted(contents, key=lambda entry: entry[1]):
                if total <= self.share * KEPT:
                    break
                path.unlink(missing_ok=True)
                total -= size
        oldest = time.time() - TRUSTED_SECONDS
        for path, used, _ in (entry for name in folders for entry in _entries(self.directory / "names" / name)):
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
