"""Entries of the cache that nobody uses any more: removed at a start, once a day.

The time of an entry says when a process last used it: `mark_used` sets it when the entry is opened, `keep_marked` again
every hour while the process reads. So what is old is needed by no run, on whichever machine it is.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

MARKED_SECONDS = 3600  # after which a process marks again what it uses
UNUSED_SECONDS = 30 * 86_400  # after which an entry may go
PRUNED_SECONDS = 86_400  # between two looks at a cache
# What may go: files and folders that are made again where they are needed. Images and plans have limits of their own
ENTRIES = ("archive-*", "arrays/*.npy", "checked/*", "fetched/*/*", "offsets-*", "unpacked/*", "?" * 32)
LENGTHS = re.compile("[0-9a-f]{32}")  # the name of a folder of lengths, in which there is one of these
OF_LENGTHS = ("meta.json", "parts")
_used: set[str] = set()  # by this process, and by those that it was forked from
_marked_at = 0.0


def mark_used(path: str | os.PathLike) -> None:
    """Say that this process uses an entry of the cache, from now on until it ends; before looking whether it is there.

    An entry that isn't there, and a cache that can't be written, are passed over.
    """
    path = os.path.abspath(path)
    _used.add(path)
    _mark(path)


def keep_marked() -> None:
    """Mark what this process uses again, once an hour; to be called whenever it reads."""
    global _marked_at
    if time.time() - _marked_at > MARKED_SECONDS:
        _marked_at = time.time()
        for path in _used:
            _mark(path)


def is_unused(path: str | os.PathLike, seconds: float = UNUSED_SECONDS) -> bool:
    """Whether nobody has used an entry for so long; False where it isn't there."""
    try:
        return time.time() - os.lstat(path).st_mtime > seconds
    except OSError:
        return False


def _mark(path: str) -> None:
    with contextlib.suppress(OSError):
        if time.time() - os.stat(path).st_mtime > MARKED_SECONDS:
            os.utime(path)


def remove_unused(cache_dir: str | os.PathLike, *, now: bool = False) -> None:
    """Remove the entries of a cache that nobody has used for `UNUSED_SECONDS`, where nobody has looked for a day.

    A process that starts calls it after marking what it uses; of several, one looks and the others go on. A cache that
    can't be written stays as it is.

    Args:
        now: look also where somebody has looked today.
    """
    root = Path(cache_dir)
    marker = root / "pruned"
    with contextlib.suppress(OSError):
        if not root.is_dir() or not (now or not marker.exists() or is_unused(marker, PRUNED_SECONDS)):
            return
        with open(marker, "a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where another process looks
            os.utime(marker)
            for entry in _entries(root):
                if is_unused(entry):
                    with contextlib.suppress(OSError):
                        entry.rename(root / f"removed-{secrets.token_hex(6)}")  # at once, for others that look there
            for removed in root.glob("removed-*"):
                shutil.rmtree(removed, ignore_errors=True)
                with contextlib.suppress(OSError):  # a folder has gone already
                    removed.unlink()


def _entries(root: Path) -> Iterator[Path]:
    for pattern in ENTRIES:
        for path in root.glob(pattern):
            is_lengths = LENGTHS.fullmatch(path.name) and any((path / name).exists() for name in OF_LENGTHS)
            if path.suffix != ".lock" and not path.is_symlink() and (pattern != ENTRIES[-1] or is_lengths):
                yield path
