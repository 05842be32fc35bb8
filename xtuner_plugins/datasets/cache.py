"""Files that are worth keeping between runs: found again by the content they depend on, written whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

DEFAULT_CACHE = "work_dirs/data_index"


def content_hash(path: str | os.PathLike, cache_dir: str | os.PathLike) -> str:
    """Hash of a file's bytes; remembered as long as its size, time and inode stay, so that a gigabyte is read once."""
    path = os.path.realpath(path)
    status = os.stat(path)
    stamp = [path, status.st_size, status.st_mtime_ns, status.st_ino]
    memo = Path(cache_dir) / "hashes" / f"{text_hash(path)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp:
            return known["hash"]
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    write_whole(memo, lambda target: target.write_text(json.dumps({"stamp": stamp, "hash": digest.hexdigest()})))
    return digest.hexdigest()


def text_hash(*texts: str) -> str:
    """Hash of texts, each kept apart from the next."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it into place; a crash leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(6)}{path.suffix}")  # readable by whom the umask says
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def save_array(path: Path, array: np.ndarray) -> None:
    """One .npy file, whole or not at all."""

    def write(target: Path) -> None:
        with open(target, "wb") as file:
            np.save(file, array)

    write_whole(path, write)


def open_array(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped: processes share its pages and none holds a copy."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: of several processes that want to build one thing, one builds and the others wait.

    The kernel drops the lock when its holder dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
