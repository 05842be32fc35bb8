"""Files behind URLs, and members of zip archives, through fsspec: read whole or in part, tried again, or copied.

| what a read meets | becomes |
|---|---|
| no such object | `MediaError`, `image_missing`, as for a file |
| no permission: HTTP 401, 403 | `MediaError`, `store_denied` |
| a damaged or encrypted member of a zip | `MediaError`, `archive_member` |
| anything else, four times | `SourceError`: the store doesn't answer, which is about no single record |
"""

import json
import logging
import os
import posixpath
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmengine.logging import print_log

from ..errors import MediaError, SettingError, SourceError
from ..files import get_cache_dir, locked, masked, scheme_of, text_hash, unsigned, write_whole
from ..ranges import check_storage_options, check_store_url

PAUSES = (0.0, 0.5, 2.0, 8.0)  # seconds before each try
SECONDS = 60.0  # that a try may last
BLOCK = 1 << 24  # bytes fetched at a time
MISSING, DENIED = "image_missing", "store_denied"
TAGS = ("ETag", "etag", "md5Hash", "crc32c", "LastModified", "Last-Modified", "mtime", "updated", "created")
_MISSING = (FileNotFoundError, IsADirectoryError, KeyError)
ZIP = "zip"  # the scheme of `zip://FOLDER::/path.zip`
MANY_MEMBERS = 20_000  # of a zip; every process holds its list, 1.4 kB per member


class Store:
    """The objects below a URL.

    Args:
        url: the prefix, or of a zip archive `zip://FOLDER::PATH`.
        options: fsspec's `storage_options`.

    Attributes:
        shown: the URL without user and signature, for messages.

    Raises:
        SettingError: the URL or the options can't be used, or the zip can't be read.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        self.url, self.options, self._opened = url, dict(options or {}), {}
        self.is_zip = scheme_of(url) == ZIP
        if not self.is_zip:
            check_storage_options(self.options)
            check_store_url(url)
        inside, _, self.archive = url.partition("://")[2].partition("::")
        self.shown = f"{self.archive}/{inside}".rstrip("/") if self.is_zip else masked(url)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}

    def key(self) -> str:
        """Hash of what tells the prefix from others, without credentials; of a zip also its size and time."""
        status = os.stat(self.archive) if self.is_zip else None
        state = [status.st_size, status.st_mtime_ns] if status else []
        return text_hash(unsigned(self.url), json.dumps([self.options, state], sort_keys=True, default=str))

    def place(self, name: str) -> str:
        """How messages call an object."""
        return f"{self.shown.rstrip('/')}/{name}" if name else self.shown

    def read(self, name: str = "", first: int = 0, end: int | None = None) -> bytes:
        """The bytes `first` to `end` of an object; stores that give whole objects only give all of them.

        Raises:
            MediaError, SourceError: see the module.
        """
        part = {} if first == 0 and end is None else {"start": first, "end": end}
        return self._ask("cat_file", name, **part)

    def version(self, name: str = "") -> list | None:
        """Size, and tag or time of an object, which change with it; None where the store tells neither.

        Raises:
            MediaError, SourceError: as `read`.
        """
        info = self._ask("info", name)
        tag = next((str(info[key]) for key in TAGS if info.get(key)), None)
        return [info.get("size"), tag] if tag else None

    def members(self) -> int:
        """Open the store in this process; returns how many members a zip has.

        Raises:
            MediaError, SourceError: as `read`.
        """
        return len(self._ask("find", ""))

    def _open(self) -> tuple[Any, str]:
        """(file system, root) of this process: connections and positions in files don't survive a fork."""
        if os.getpid() not in self._opened:
            from fsspec.core import url_to_fs

            url = self.url if self.is_zip else self.url.partition("?")[0]
            self._opened = {os.getpid(): url_to_fs(url, skip_instance_cache=True, **self.options)}
        return self._opened[os.getpid()]

    def _call(self, method: str, name: str, **options) -> Any:
        fs, root = self._open()
        is_http = scheme_of(self.url) in ("http", "https")
        path = posixpath.join(root, quote(name) if is_http else name) if name else root
        if is_http and "?" in self.url:
            path += "?" + self.url.partition("?")[2]
        if not fs.async_impl:
            return getattr(fs, method)(path, **options)
        from fsspec.asyn import sync

        fs.invalidate_cache()  # an object's version is asked for, not remembered
        return sync(fs.loop, getattr(fs, f"_{method}"), path, timeout=SECONDS, **options)

    def _ask(self, method: str, name: str, **options) -> Any:
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._call(method, name, **options)
            except Exception as error:  # libraries' errors have many bases
                final = self._final(error, name)
                if final is not None:
                    raise final from None
                text = masked(" ".join(str(error).split()))[:160] or type(error).__name__
                if pause == PAUSES[0]:
                    print_log(f"{self.place(name)}: {text}; trying again", "current", logging.WARNING)
        raise SourceError(
            f"{self.place(name)}: no answer in {len(PAUSES)} tries ({text}); check that the store runs, and "
            "storage_options (endpoint_url)"
        )

    def _final(self, error: Exception, name: str) -> MediaError | None:
        """The complaint about one object; None where the store has trouble."""
        status, cause = _status(error), error.__cause__
        in_vain = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")  # said as if missing
        if status in (404, 410) or (isinstance(error, _MISSING) and status is None and not in_vain):
            return MediaError(MISSING, "no such object", "correct the name or the folder", self.place(name))
        if self.is_zip:
            text = " ".join(str(error).split())[:100] or type(error).__name__
            problem, remedy = f"can't be read from the zip ({text})", "fetch or write the archive again"
            return MediaError("archive_member", problem, remedy, self.place(name))
        if isinstance(error, PermissionError) or status in (401, 403):
            remedy = (
                "give credentials by environment variables, a profile or a file of credentials; without the permission "
                "to list, stores say the same of objects that aren't there"
            )
            return MediaError(DENIED, f"access denied ({masked(str(error))[:120]})", remedy, self.place(name))
        if isinstance(error, (ImportError, TypeError)):
            raise SettingError("storage_options", f"{self.shown}: {error}", "correct storage_options") from None
        return None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of aiohttp or botocore."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        told = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
        if isinstance(status := getattr(each, "status", None) or told.get("HTTPStatusCode"), int):
            return status
    return None


def localize(url: str, options: Mapping[str, Any] | None) -> str:
    """The path of a copy of an annotation file in the cache, fetched where its version in the store has changed.

    Where a store tells no version, the file is fetched at each start. Of several processes one fetches.

    Raises:
        SettingError: it isn't there, access is denied, or the cache can't be written.
        SourceError: the store doesn't answer, or the file changes meanwhile.
    """
    store = Store(url, options)
    folder = get_cache_dir() / "fetched" / text_hash(unsigned(url))
    name = posixpath.basename(url.partition("?")[0]) or "file"
    try:
        version = store.version()
        if version is None:
            data = store.read()
            target = folder / text_hash(data) / name
            write_whole(target, lambda beside: beside.write_bytes(data))
            return str(target)
        target = folder / text_hash(str(version)) / name
        with locked(folder.with_suffix(".lock")):
            if not target.exists():
                size = f"{(version[0] or 0) / 1e6:,.1f} MB"
                print(f"fetching {store.shown} ({size}) into {target.parent}", file=sys.stderr, flush=True)
                write_whole(target, lambda beside: _fetch(store, beside, version))
    except MediaError as error:
        raise SettingError("data_paths", error.problem, error.remedy, error.place) from None
    return str(target)


def _fetch(store: Store, target: Path, version: list) -> None:
    done, block = 0, b""
    with open(target, "wb") as file:
        while not done or (done != version[0] and len(block) == BLOCK):
            block = store.read("", done, done + BLOCK)
            if len(block) > BLOCK:  # a store that gives whole objects only
                file.seek(0)
                done = 0
            done += file.write(block)
    if (version[0] is not None and done != version[0]) or store.version() != version:
        raise SourceError(f"{store.shown}: it has changed while it was fetched; start again when it is whole")
