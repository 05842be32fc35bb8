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
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmengine.logging import print_log

from ..errors import MediaError, SettingError, SourceError, one_line
from ..files import build_once, get_cache_dir, masked, scheme_of, text_hash
from ..ranges import check_storage_options, check_store_url

PAUSES = (0.0, 0.5, 2.0, 8.0)  # seconds before each try
SECONDS = 60.0  # that a try may last
BLOCK = 1 << 24  # bytes fetched at a time
TAGS = ("ETag", "etag", "md5Hash", "crc32c", "LastModified", "Last-Modified", "mtime", "updated", "created")
DENIED_REMEDY = "give credentials; without the permission to list, stores say the same of objects that aren't there"


class Store:
    """The objects below a URL.

    Args:
        url: the prefix, or of a zip archive `zip://FOLDER::PATH`.
        options: fsspec's `storage_options`.

    Attributes:
        shown: the URL without user and signature, for messages.

    Raises:
        SettingError: the URL or the options can't be used.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        self.url, self.options, self._opened = url, dict(options or {}), {}
        inside, _, self.archive = url.partition("://")[2].partition("::") if scheme_of(url) == "zip" else ("", "", "")
        self.shown = f"{self.archive}/{inside}".rstrip("/") if self.archive else masked(url)
        if not self.archive:
            check_storage_options(self.options)
            check_store_url(url)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}

    def key(self) -> str:
        """Hash of what tells the prefix from others; of a zip also its size and time."""
        state = [os.path.getsize(self.archive), os.stat(self.archive).st_mtime_ns] if self.archive else []
        return text_hash(self.url, json.dumps([self.options, state], sort_keys=True, default=str))

    def place(self, name: str) -> str:
        """How messages call an object."""
        return f"{self.shown.rstrip('/')}/{name}" if name else self.shown

    def read(self, name: str = "", first: int = 0, end: int | None = None) -> bytes:
        """The bytes `first` to `end` of an object, or all if the store can't give less; errors as the module says."""
        return self._ask("cat_file", name, **({} if first == 0 and end is None else {"start": first, "end": end}))

    def version(self, name: str = "") -> list:
        """Size, and tag or time of an object, which change with it; None for what isn't told. Errors as `read`."""
        info = self._ask("info", name)
        return [info.get("size"), next((str(info[key]) for key in TAGS if info.get(key)), None)]

    def _ask(self, method: str, name: str, **options) -> Any:
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._call(method, name, **options)
            except Exception as error:  # libraries' errors have many bases
                if (final := self._final(error, name)) is not None:
                    raise final from None
                text = masked(one_line(error))
                if pause == PAUSES[0]:
                    print_log(f"{self.place(name)}: {text}; trying again", "current", logging.WARNING)
        remedy = "check that the store runs, and storage_options (endpoint_url)"
        raise SourceError(f"{self.place(name)}: no answer in {len(PAUSES)} tries ({text}); {remedy}")

    def _call(self, method: str, name: str, **options) -> Any:
        from fsspec.asyn import sync
        from fsspec.core import url_to_fs

        base, _, query = (self.url, "", "") if self.archive else self.url.partition("?")
        if os.getpid() not in self._opened:  # connections and positions in files don't survive a fork
            self._opened = {os.getpid(): url_to_fs(base, skip_instance_cache=True, **self.options)}
        fs, root = self._opened[os.getpid()]
        is_http = base.lower().startswith("http")
        path = posixpath.join(root, quote(name) if is_http else name) if name else root
        path += f"?{query}" if is_http and query else ""
        if not fs.async_impl:
            return getattr(fs, method)(path, **options)
        fs.invalidate_cache()  # an object's version is asked for, not remembered
        return sync(fs.loop, getattr(fs, f"_{method}"), path, timeout=SECONDS, **options)

    def _final(self, error: Exception, name: str) -> MediaError | None:
        """The complaint about one object; None where the store has trouble."""
        status, place = _status(error), self.place(name)
        if status in (404, 410):
            return MediaError("image_missing", "no such object", "correct the name or the folder", place)
        if self.archive:
            problem = f"can't be read from the zip ({one_line(error)})"
            return MediaError("archive_member", problem, "fetch or write the archive again", place)
        if status in (401, 403):
            return MediaError("store_denied", f"access denied ({masked(str(error))[:120]})", DENIED_REMEDY, place)
        if isinstance(error, (ImportError, TypeError)):
            remedy = "install the package of this store, or correct storage_options"
            raise SettingError("storage_options", str(error), remedy, self.shown) from None
        return None


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of aiohttp or botocore, or the one that Python's own error stands for."""
    cause = error.__cause__
    for each in (error, cause):
        response = getattr(each, "response", None)
        told = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
        if isinstance(status := getattr(each, "status", None) or told.get("HTTPStatusCode"), int):
            return status
    if isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp"):
        return None  # fsspec says of a lost connection that the object is missing
    is_missing = isinstance(error, (FileNotFoundError, IsADirectoryError, KeyError))
    return 404 if is_missing else 403 if isinstance(error, PermissionError) else None


def localize(url: str, options: Mapping[str, Any] | None) -> str:
    """The path of a copy of an annotation file in the cache, fetched where its version in the store has changed.

    Of several processes one fetches.

    Raises:
        SettingError: it isn't there, access is denied, the store tells no version, or the cache can't be written.
        SourceError: the store doesn't answer, or the file changes meanwhile.
    """
    store = Store(url, options)
    folder = get_cache_dir() / "fetched" / text_hash(url)
    try:
        version = store.version()
        if None in version:
            problem = "the store tells no size, tag or time, so a change would go unseen"
            raise SettingError("data_paths", problem, "download the file, and name the copy", store.shown)
        target = folder / text_hash(str(version)) / (posixpath.basename(url.partition("?")[0]) or "file")
        told = f"fetching {store.shown} ({version[0] / 1e6:,.1f} MB) into {target.parent}"
        return str(build_once(target, lambda beside: _fetch(store, beside, version), told))
    except MediaError as error:
        raise SettingError("data_paths", error.problem, error.remedy, error.place) from None


def _fetch(store: Store, target: Path, version: list) -> None:
    with open(target, "wb") as file:
        for first in range(0, version[0], BLOCK):
            if file.write(store.read("", first, first + BLOCK)) > BLOCK:  # a store that gives whole objects only
                break
        done = file.tell()
    if done != version[0] or store.version() != version:
        raise SourceError(f"{store.shown}: it has changed while it was fetched; start again when it is whole")
