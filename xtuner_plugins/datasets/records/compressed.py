"""Compressed annotation files: unpacked once into the cache, and read there as plain files are.

    a.jsonl.gz, a.json.gz, a.jsonl.zst ...  ->  CACHE/unpacked/HASH, HASH being that of the compressed file's content

The first bytes decide, not the name. Messages name the compressed file and the line in what it holds.
"""

import contextlib
import gzip
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..cache import content_hash, locked, write_whole, writing
from ..errors import SettingError
from ..unused import mark_used
from .index import HEAD, first_byte_of

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BLOCK = 1 << 22  # bytes unpacked at a time


def is_compressed(path: str) -> bool:
    """Whether a file begins as gzip or zstd does."""
    with open(path, "rb") as file:
        return file.read(4).startswith((GZIP, ZSTD))


def unpack(path: str, cache_dir: str | os.PathLike) -> str:
    """The path of the unpacked content of a compressed file, which is made where the cache doesn't hold it.

    Of several processes one unpacks and the others wait.

    Raises:
        SettingError: the file is damaged, cut off or no annotation file, or the cache can't be written.
    """
    target = Path(cache_dir) / "unpacked" / content_hash(path, cache_dir)
    mark_used(target)
    if not target.exists():
        with locked(target.with_suffix(".lock")):
            if not target.exists():  # another process may have unpacked it meanwhile
                with _reading(path), _open(path) as packed:
                    first_byte_of(packed.read(HEAD), path)  # before anything is unpacked in vain
                print(f"unpacking {path} ({_size(path)}) into {target}", file=sys.stderr, flush=True)
                with writing(target):
                    write_whole(target, lambda beside: _unpack(path, beside))
                print(f"unpacked {path}: {_size(target)}", file=sys.stderr, flush=True)
    return str(target)


def _unpack(path: str, target: Path) -> None:
    with _reading(path), _open(path) as packed, open(target, "wb") as file:
        shutil.copyfileobj(packed, file, BLOCK)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:  # of the disk, which `writing` explains
            raise
        raise _damaged(path, error) from None  # pyarrow says so of zstd


def _damaged(path: str, error: Exception) -> SettingError:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    remedy = "fetch the file again; it seems to be cut off or damaged"
    return SettingError("annotation_file", f"can't be unpacked ({text})", remedy, f"{path}:1")


def _open(path: str) -> BinaryIO:
    with open(path, "rb") as file:
        if file.read(2) == GZIP:
            return gzip.open(path)
    import pyarrow  # heavy; it brings zstd, which Python itself doesn't before 3.14

    return pyarrow.input_stream(path, compression="zstd")


def _size(path: str | os.PathLike) -> str:
    return f"{os.path.getsize(path) / 1e6:,.1f} MB"
