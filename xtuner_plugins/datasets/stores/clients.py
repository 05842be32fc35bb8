"""The libraries behind stores, each with the same few calls: fsspec by URL, or a file backend of MMEngine.

A client belongs to the process that made it: connections, event loops and LMDB environments don't survive a fork.
`Store` makes a new one in each process.
"""

import json
import os
import posixpath
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from ...data_names import scheme_of
from ..errors import MediaError, SettingError

T = TypeVar("T")
TAGS = ("ETag", "etag", "md5Hash", "crc32c", "Content-MD5", "Digest")  # names in what fsspec tells of an object
TIMES = ("LastModified", "Last-Modified", "mtime", "updated", "created")
_backends: dict[tuple[int, str], Any] = {}  # process and arguments -> backend; LMDB is opened once in a process


class Client(Protocol):
    """What reads the objects below a prefix. Every call takes the seconds that it may last."""

    in_parts: bool  # whether a part of an object can be read

    def read(self, name: str, first: int, end: int | None, seconds: float, most: int | None = None) -> bytes:
        """The bytes `first` to `end` of an object (None: to its end), or all of them where parts can't be read.

        Args:
            most: bytes that the object may have (None: any number).

        Raises:
            MediaError: it is seen to have more.
        """

    def version(self, name: str, seconds: float) -> list | None:
        """What changes with an object: size, tag and time, as far as they are known; None: neither is."""

    def names(self, seconds: float) -> list[str] | None:
        """The names of all objects below the prefix; None: they can't be listed."""

    def look(self, seconds: float) -> None:
        """Raise an error of the library where there is nothing below the prefix."""


def too_large(most: int) -> MediaError:
    """The error about an object of more than `most` bytes."""
    remedy = "make it smaller or put it into a folder"
    return MediaError("media_bytes", f"more than {most:,} bytes, the most that are read of an object", remedy)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may take so long and no longer; the thread that waits for it is then left to itself.

    Raises:
        TimeoutError: it has taken longer.
    """
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:  # goes on in the thread that asked
            answer.put((None, error))

    threading.Thread(target=work, name="store", daemon=True).start()  # a daemon: never waited for when Python ends
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.2g} s") from None
    if error is not None:
        raise error
    return value


def _drop_inherited() -> None:
    """Let go of the backends of the process that this one was forked from; LMDB refuses to open what is still open."""
    for key in [key for key in _backends if key[0] != os.getpid()]:
        backend = _backends.pop(key)
        if type(backend).__name__ == "LmdbBackend" and backend._client is not None:
            backend._client.close()
            backend._client = None


class FsspecClient:
    """The objects below a URL, through fsspec.

    Args:
        root: the URL.
        options: of its file system (`storage_options`).
    """

    in_parts = True

    def __init__(self, root: str, options: Mapping[str, Any], seconds: float):
        from fsspec.core import url_to_fs

        self.is_http = scheme_of(root) in ("http", "https")
        root, _, self.query = root.partition("?") if self.is_http else (root, "", "")
        self.fs, self.root = within(seconds, lambda: url_to_fs(root, skip_instance_cache=True, **options))

    def _path(self, name: str) -> str:
        if not self.is_http:
            return posixpath.join(self.root, name) if name else self.root
        path = f"{self.root.rstrip('/')}/{quote(name)}" if name else self.root
        return f"{path}?{self.query}" if self.query else path

    def _call(self, method: str, *args, seconds: float, **kwargs) -> Any:
        if not self.fs.async_impl:
            return within(seconds, lambda: getattr(self.fs, method)(*args, **kwargs))
        from fsspec.asyn import sync

        return sync(self.fs.loop, getattr(self.fs, f"_{method}"), *args, timeout=seconds, **kwargs)

    def read(self, name: str, first: int, end: int | None, seconds: float, most: int | None = None) -> bytes:
        if self.is_http and most is not None:
            from fsspec.asyn import sync

            return sync(self.fs.loop, self._get, self._path(name), first, end, most, timeout=seconds)
        limit = most + 1 if end is None and most is not None else end  # a byte more shows that there are more
        part = {} if first == 0 and limit is None else {"start": first, "end": limit}
        data = self._call("cat_file", self._path(name), seconds=seconds, **part)
        if most is not None and first + len(data) > most:
            raise too_large(most)
        return data

    async def _get(self, url: str, first: int, end: int | None, most: int) -> bytes:
        """As `read`, of HTTP: fsspec's own `cat_file` takes into memory whatever a server sends."""
        options = dict(self.fs.kwargs)
        headers = dict(options.pop("headers", {}))
        if first or end is not None:
            headers["Range"] = f"bytes={first}-{'' if end is None else end - 1}"
        session = await self.fs.set_session()
        async with session.get(self.fs.encode_url(url), headers=headers, **options) as answer:
            self.fs._raise_not_found_for_status(answer, url)
            parts, read = [], first if answer.status == 206 else 0
            of_range = answer.headers.get("Content-Range", "").rpartition("/")[2]
            whole = int(of_range) if of_range.isdecimal() else read + (answer.content_length or 0)
            if whole > most:
                raise too_large(most)
            async for part in answer.content.iter_any():
                parts.append(part)
                read += len(part)
                if read > most:
                    raise too_large(most)
            return b"".join(parts)

    def version(self, name: str, seconds: float) -> list | None:
        self.fs.invalidate_cache()
        try:
            info = self._call("info", self._path(name), seconds=seconds)
        except FileNotFoundError:
            if not self.is_http:
                raise
            self.read(name, 0, 1, seconds)  # over HTTP that is said of every trouble; this says which
            return None
        if info.get("type") == "directory":
            raise FileNotFoundError(name)
        tag, time = (next((str(info[key]) for key in keys if info.get(key)), None) for keys in (TAGS, TIMES))
        return [info.get("size"), tag, time] if tag or time else None

    def names(self, seconds: float) -> list[str] | None:
        if self.is_http:  # pages of links, if anything
            return None
        self.fs.invalidate_cache()
        head = self.root.rstrip("/") + "/"
        return [path.removeprefix(head) for path in self._call("find", self.root, seconds=seconds)]

    def look(self, seconds: float) -> None:
        if self.is_http:  # a prefix has no page of its own
            return
        info = self._call("info", self.root, seconds=seconds)
        if info.get("type") != "directory":
            problem = "is an object, not the prefix of some"
            remedy = "name the prefix; archives are read in place on a disk only"
            raise SettingError("image_folders", problem, remedy)


class BackendClient:
    """The objects of a file backend of MMEngine, which takes each name behind the prefix.

    Args:
        root: what stands before the names; '' for nothing.
        options: `backend` and its arguments.
    """

    in_parts = False

    def __init__(self, root: str, options: Mapping[str, Any], seconds: float):
        from mmengine.fileio import get_file_backend
        from mmengine.fileio.backends import backends

        name = options["backend"]
        if name not in backends:
            remedy = f"MMEngine has {', '.join(backends)}; register yours with mmengine.fileio.register_backend"
            raise SettingError("backend_args", f"backend={name!r} is unknown", remedy)
        self.root, self.is_local = root, backends[name].__name__ == "LocalBackend"
        key = os.getpid(), json.dumps(options, sort_keys=True, default=str)
        if key not in _backends:  # not MMEngine's own instances, which a forked process would share with its parent
            _drop_inherited()
            _backends[key] = within(seconds, lambda: get_file_backend(backend_args=dict(options)))
        self.backend = _backends[key]

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if self.root and name else name or self.root

    def read(self, name: str, first: int, end: int | None, seconds: float, most: int | None = None) -> bytes:
        path = self._path(name)
        if self.is_local and self.root and name:
            inside = os.path.join(os.path.realpath(self.root), "")
            if not os.path.realpath(path).startswith(inside):
                remedy = "put the file itself into the folder, or set image_folders to where it lies"
                raise MediaError("image_outside", f"{name!r} is a link out of {self.root!r}", remedy)
        data = within(seconds, lambda: self.backend.get(path))
        if data is None:  # so say petrel and LMDB
            raise FileNotFoundError(path)
        if most is not None and len(data) > most:
            raise too_large(most)
        return bytes(data)

    def version(self, name: str, seconds: float) -> None:
        return None

    def names(self, seconds: float) -> list[str] | None:
        listing = getattr(self.backend, "list_dir_or_file", None)
        if listing is None:
            return None
        return within(seconds, lambda: list(listing(self.root or ".", list_dir=False, recursive=True)))

    def look(self, seconds: float) -> None:
        if self.is_local and self.root and not os.path.isdir(self.root):
            raise FileNotFoundError(self.root)
