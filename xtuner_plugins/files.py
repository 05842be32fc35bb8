"""Files: hashes, writing whole or not at all, locks and maps; and how settings name files and objects of stores.

Importing this is fast, since the check of a config's text does: NumPy and PyTorch are imported where they are needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from .errors import SettingError, SourceError

if TYPE_CHECKING:
    import numpy as np

CACHE_VARIABLE = "XTUNER_PLUGINS_CACHE"
DEFAULT_CACHE = "work_dirs/data_index"
FIRST_WORD = 5.0  # seconds after which a process that waits for a lock says so; the pause then doubles up to a minute
PAUSE = 0.05  # seconds between two tries
WILDCARDS = "*?"
LOCAL_SCHEME = "file"
STORE_SCHEMES = ("s3", "s3a", "oss", "gs", "gcs", "hdfs", "http", "https", "memory")  # that fsspec opens
HIDDEN = "***"  # stands for credentials in what messages show of a URL
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# What stands before the host: up to the first slash, or beyond it where a password that isn't quoted holds one.
_USER = re.compile(r"(?<=://)(?:[^/\s@]*|[^/\s@]*:(?!\d+/)[^\s@]*)@")
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]+")  # holds the signature of a signed URL


def get_cache_dir() -> Path:
    """The directory that the environment variable `CACHE_VARIABLE` names, else `DEFAULT_CACHE`."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)


def content_hash(path: str | os.PathLike) -> str:
    """Hash of a file's bytes, as fast as a disk gives them."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def array_hash(*arrays: np.ndarray) -> str:
    """Hash of integer arrays by their values, whatever their widths."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.astype("int64", "C", copy=False).data)
    return digest.hexdigest()


def text_hash(*texts: str | bytes) -> str:
    """Hash of texts, each kept apart from the next."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def keep_inputs(out: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """Raises `SettingError` where an output is the same file as an input."""
    if any(os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path) for path in inputs):
        raise SettingError("output", f"{out} is an input, too, which would be lost", "name another file for the output")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it into place; a crash leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(6)}{path.suffix}")  # default permissions (umask)
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and str(error.filename) == str(beside):
            error.filename = str(path)  # the name that a user knows
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


@contextlib.contextmanager
def writing(path: Path, setting: str = CACHE_VARIABLE) -> Iterator[None]:
    """Turn a failure to write (disk full, no permission, read-only) into one line with a remedy, a `SettingError`.

    Args:
        setting: what names the directory.
    """
    try:
        yield
    except SourceError:  # of what is read meanwhile
        raise
    except OSError as error:
        problem = f"can't be written ({error.strerror or error})"
        remedy = f"make room and give write permission there, or name another directory by {setting}"
        raise SettingError("cache", problem, remedy, str(path)) from None


def save(path: Path, arrays: dict[str, np.ndarray], setting: str = CACHE_VARIABLE) -> None:
    """Write a file with several arrays (.npz), whole or not at all; `setting` and errors as of `writing`."""
    import numpy as np

    with writing(path, setting):
        write_whole(path, lambda beside: np.savez(beside, **arrays))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, so that of several processes one builds something and the others wait.

    The lock is a POSIX record lock: it belongs to one process, is not inherited by its children, and is dropped by the
    kernel when that process dies. Threads of one process don't exclude each other. While a process waits, it prints
    on stderr which process it waits for and how long (on each node, only local rank 0 does).

    Raises:
        SettingError: the lock file can't be written.
    """
    with contextlib.ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+", encoding="utf-8"))  # "w" would erase what the holder wrote
            _wait_for_lock(file)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})")
            file.flush()
        yield  # closing the file releases the lock


def _wait_for_lock(file: IO[str]) -> None:
    started, say_at = time.monotonic(), FIRST_WORD
    while True:
        try:
            return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either where another process holds the lock
            waited = time.monotonic() - started
        if waited >= say_at and os.environ.get("LOCAL_RANK", "0") == "0":
            file.seek(0)
            said = f"waiting {waited:.0f} s for {file.read() or 'another process'}, which holds {file.name} while it"
            print(f"{said} prepares the data; if it isn't at work, end it", file=sys.stderr, flush=True)
            say_at += min(say_at, 60)
        time.sleep(PAUSE)


def build_once(path: Path, build: Callable[[Path], object], told: str = "") -> Path:
    """A file of the cache, built by the first process that wants it, which prints `told`; errors as `writing`."""
    with locked(path.with_suffix(".lock")), writing(path):
        if not path.exists():
            print(told, end="\n" * bool(told), file=sys.stderr, flush=True)
            write_whole(path, build)
    return path


def is_url(path: object) -> bool:
    """Whether an entry is a URL; `file://` is one, too."""
    return isinstance(path, str) and _URL.match(path) is not None


def scheme_of(url: str) -> str:
    """The scheme of a URL, in lower case."""
    return _URL.match(url)[1].lower()


def local_path(path: str) -> str:
    """The path that a `file://` URL names; any other entry as it is."""
    if not is_url(path) or scheme_of(path) != LOCAL_SCHEME:
        return path
    return unquote(urlsplit(path).path)


def absolute_path(path: str) -> str:
    """The absolute path of an entry; a URL as it is."""
    return path if is_url(path) else os.path.abspath(path)


def masked(text: str) -> str:
    """A text without the users, passwords and queries (signatures) of the URLs in it, for messages."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def shown(url: str) -> str:
    """As `masked`, and a hash tells URLs apart that differ in a query."""
    query = url.partition("?")[2]
    return masked(url) + (hashlib.blake2b(query.encode(), digest_size=4).hexdigest() if query else "")


def is_pattern(path: str) -> bool:
    """Whether an entry names files by a pattern: `*` and `?` as in a shell."""
    return not is_url(path) and not os.path.exists(path) and any(char in path for char in WILDCARDS)


def split_zip(path: str) -> tuple[str, str]:
    """(zip archive, folder in it) of a path; ('', '') where no part of it is one."""
    for match in re.finditer(r"\.zip(?=/|$)", path, re.IGNORECASE):
        if os.path.isfile(head := path[: match.end()]):
            return head, path[match.end() :].strip("/")
    return "", ""


def names_data(path: str) -> bool:
    """Whether something is there that an entry of `data_paths` can mean; patterns and URLs aren't looked up."""
    path = local_path(path)
    return is_url(path) or os.path.exists(path) or is_pattern(path)


def names_images(path: str) -> bool:
    """Whether something is there that an entry of `image_folders` can mean; URLs aren't looked up."""
    path = local_path(path)
    return is_url(path) or os.path.isdir(path) or bool(split_zip(path)[0])
