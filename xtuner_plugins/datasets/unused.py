"""Which entries of the cache are in use: the time of a file or folder of it says when a process last used it.

`mark_used` sets that time when an entry is opened; `keep_marked` sets it again every hour while the process reads. So
whoever removes what is old removes nothing that a run needs, on whichever machine the run is.
"""

import contextlib
import os
import time

MARKED_SECONDS = 3600  # after which a process marks again what it uses
UNUSED_SECONDS = 30 * 86_400  # after which an entry may go
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
