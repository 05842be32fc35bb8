"""One prefix of a store, read with retries, within a deadline, and with our own errors.

| what a read meets | becomes |
|---|---|
| no such object | `image_missing`, as for a file |
| no permission, no credentials, HTTP 401 and 403 | `store_denied` |
| another refusal, HTTP 4xx | `store_refused` |
| an object above the limit of its reader | `media_bytes` |
| no connection, no answer in time, HTTP 5xx, an answer that is cut off | after other tries, `store_unreachable` |

A read may take `timeout` seconds with all its tries, and one try half of them. After a read in vain, further ones of
the process have one try within a tenth of the time, until one succeeds: a run whose store has gone ends soon.
"""

import contextlib
import errno
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

from mmengine.logging import print_log

from ...data_names import HIDDEN, hidden_parts, is_url, masked
from ...ranges import RangeError, check_backend_args, check_store_url
from ..cache import bytes_hash
from ..errors import DataError, MediaError, SettingError
from .clients import BackendClient, Client, FsspecClient
from .identity import identity

T = TypeVar("T")
TIMEOUT = 60.0  # seconds of a read with all its tries
CACHE_GIB = 8.0  # limit of kept images
SHORT = 0.1  # part of them for a read of a store that doesn't answer
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds between tries, doubled each time
MISSING, DENIED, REFUSED, UNREACHABLE = "image_missing", "store_denied", "store_refused", "store_unreachable"
BEYOND = "beyond"
DENIED_IN_A_ROW = 10  # reads without a success, from which on it isn't about single objects
NO_CREDENTIALS = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "DefaultCredentials", "TokenRetrieval")
NO_CREDENTIALS += ("RefreshError", "UnauthorizedSSO")
# No other try helps: wrong options, missing packages, names that the store can't have
FINAL_ERRORS = (ImportError, TypeError, AttributeError, NotImplementedError, UnicodeError)
FINAL_NAMES = ("ProfileNotFound", "ParamValidation", "NoRegion", "InvalidRegion")
FINAL_ERRNOS = (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS)
_random = random.Random()  # of pauses, apart from the generator that a user may have seeded


@dataclass(frozen=True)
class StoreSettings:
    """How a dataset reads stores.

    Attributes:
        backend_args: options of fsspec, or with `backend` those of a file backend of MMEngine.
        timeout: seconds of a read with all its tries.
        cache_gib: most GiB of images kept in the cache directory; 0 keeps none.

    Raises:
        SettingError: one can't be used.
    """

    backend_args: Mapping[str, Any] | None = None
    timeout: float = TIMEOUT
    cache_gib: float = CACHE_GIB

    def __post_init__(self):
        for setting, value, low in (("store_timeout", self.timeout, 1), ("image_cache_gib", self.cache_gib, 0)):
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= value < 1e9:
                raise SettingError(setting, f"{setting}={value!r} can't be used", f"give a number, {low} or more")
        if self.backend_args is not None:
            with _as_setting("backend_args"):
                check_backend_args(self.backend_args)

    @property
    def has_backend(self) -> bool:
        """Whether images are read through MMEngine."""
        return "backend" in (self.backend_args or {})


@contextlib.contextmanager
def _as_setting(setting: str) -> Iterator[None]:
    try:
        yield
    except RangeError as error:
        raise SettingError(setting, error.problem, error.remedy) from None


class Store:
    """The objects whose names begin with a prefix.

    Args:
        root: a URL, or for a backend of MMEngine what stands before the names.
        settings: of the dataset.
        setting: in which the user wrote `root`.

    Raises:
        SettingError: the URL or the options can't be used, or a package isn't installed.
    """

    def __init__(self, root: str, settings: StoreSettings | None = None, setting: str = "image_folders"):
        settings = settings or StoreSettings()
        self.root, self.options, self.timeout = root, dict(settings.backend_args or {}), settings.timeout
        self.setting = setting
        with _as_setting(setting):
            if is_url(root):
                check_store_url(root, self.options)
        self._key = identity(root, self.options)
        self._hidden = hidden_parts(root) if is_url(root) else []
        self.shown = masked(root) or f"backend {self.options.get('backend')!r}"
        self._clients: dict[int, Client] = {}
        self._start()

    def _start(self) -> None:
        self._answers, self._denied, self._warned = True, 0, False

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_clients"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _clients={})
        self._start()

    @property
    def is_denied(self) -> bool:
        """Whether so many reads of this process were denied in a row that the credentials must be wrong."""
        return self._denied >= DENIED_IN_A_ROW

    def key(self) -> str:
        """Hash of what decides which object a name means (`identity`), as it was when the store was made."""
        return self._key

    def place(self, name: str) -> str:
        """How messages call an object."""
        if not name:
            return self.shown
        base, _, query = self.shown.partition("?")
        return f"{base.rstrip('/')}/{name}" + (f"?{query}" if query else "")

    def read(self, name: str, first: int = 0, end: int | None = None, most: int | None = None) -> bytes:
        """The bytes `first` to `end` of an object, as far as it has them; '' names the prefix itself.

        More bytes mean that the store gives whole objects only, and these are all bytes from 0 on.

        Args:
            most: bytes that the object may have (None: any number).

        Raises:
            MediaError: see the module; or the object is seen to have more bytes.
        """
        return self._try(
            lambda seconds: self._client(seconds).read(name, first, end, seconds, most), name, is_read=True
        )

    def stamp(self, name: str) -> list | None:
        """Size, tag and time of an object; None where the store tells neither tag nor time.

        Raises:
            MediaError: as `read`.
        """
        return self._try(lambda seconds: self._client(seconds).version(name, seconds), name)

    def version(self, name: str) -> list | str:
        """What changes when an object does, for comparison; the reason where it is missing, denied or refused.

        Raises:
            MediaError: the store can't be reached.
        """
        try:
            return self.stamp(name) or bytes_hash(self.read(name))
        except MediaError as error:
            if error.reason == UNREACHABLE:
                raise
            return error.reason

    def names(self) -> list[str] | None:
        """The names of all objects; None where they can't be listed.

        Raises:
            MediaError: as `read`.
        """
        return self._try(lambda seconds: self._client(seconds).names(seconds), "", 10 * self.timeout)

    def look(self) -> None:
        """Check that something is there; a store that doesn't allow to list its objects isn't refused.

        Raises:
            SettingError: nothing is there, or it can't be reached.
        """
        try:
            self._try(lambda seconds: self._client(seconds).look(seconds), "")
        except MediaError as error:
            if error.reason == MISSING:
                remedy = f"correct {self.setting}"
                raise SettingError(self.setting, f"{self.shown}: nothing is there", remedy) from None
            if error.reason != DENIED:
                raise SettingError(self.setting, error.problem, error.remedy, error.place) from None

    def _client(self, seconds: float) -> Client:
        client = self._clients.get(os.getpid())
        if client is None:
            kind = BackendClient if "backend" in self.options else FsspecClient
            client = kind(self.root, self.options, seconds)
            self._clients = {os.getpid(): client}  # a forked process drops that of its parent, unused
        return client

    def _try(
        self, call: Callable[[float], T], name: str, limit: float | None = None, *, is_read: bool = False
    ) -> T | bytes:
        """The result of a call that takes the seconds that it may last; tried again where that may help.

        Args:
            limit: seconds for all tries; default: `timeout`.
            is_read: whether there are no bytes where the store has none that far.
        """
        alone = not self._answers
        limit = max(1.0, SHORT * self.timeout) if alone else limit or self.timeout
        ends, pause, tries = time.monotonic() + limit, FIRST_PAUSE, 0
        while True:
            left = ends - time.monotonic()
            tries += 1
            try:
                value = call(left if alone else max(min(left, limit / 2), 0.1))
            except DataError as error:
                raise type(error)(error.reason, error.problem, error.remedy, self.place(name)) from None
            except Exception as error:
                kind = _kind(error)
                if kind == BEYOND and is_read:
                    return b""
                if kind is not None:
                    self._denied += kind in (DENIED, REFUSED)
                    raise self._error(kind, error, name) from None
                pause_now = pause * _random.uniform(0.5, 1)
                if alone or time.monotonic() + pause_now >= ends:
                    self._answers = False
                    raise self._error(UNREACHABLE, error, name, limit, tries) from None
                self._say_once(error, limit)
                time.sleep(pause_now)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._start()
                return value

    def _say_once(self, error: Exception, limit: float) -> None:
        if not self._warned:
            self._warned = True
            text = f"{self.shown}: {self._text(error)}; trying again for up to {limit:.0f} s"
            print_log(text, "current", logging.WARNING)

    def _text(self, error: Exception) -> str:
        """An error of a library in one short line without credentials."""
        status, text = _status(error), masked(" ".join(str(error).split()))
        for part in self._hidden:
            text = text.replace(part, HIDDEN)
        text = text[:160] or type(error).__name__
        return text if status is None or str(status) in text else f"HTTP {status}: {text}"

    def _error(self, kind: str, error: Exception, name: str, limit: float = 0, tries: int = 1) -> MediaError:
        place, text = self.place(name), self._text(error)
        if kind == MISSING:
            return MediaError(MISSING, "no such object in the store", _remedy(name, self.setting), place)
        if kind == DENIED:
            remedy = (
                "give credentials by environment variables, a profile or a file of credentials; without the permission "
                "to list, stores say the same of objects that aren't there"
            )
            return MediaError(DENIED, f"the store denies access ({text})", remedy, place)
        if kind in (REFUSED, BEYOND):
            return MediaError(REFUSED, f"the store refuses ({text})", "correct the name or backend_args", place)
        num_tries = "1 try" if tries == 1 else f"{tries} tries"
        remedy = "check that the store runs and backend_args (endpoint_url), or raise store_timeout"
        return MediaError(UNREACHABLE, f"no answer in {num_tries} within {limit:.0f} s ({text})", remedy, place)


def _remedy(name: str, setting: str) -> str:
    if "\\" in name:
        return "where \\ separates folders, set windows_paths=True in dataset_settings"
    return f"correct the name or {setting}" if name else f"correct {setting}"


def _kind(error: Exception) -> str | None:
    """What an error of a library means: a reason, `BEYOND` the end of an object, None where a retry may help."""
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return MISSING
    status = _status(error)
    if status == 416:
        return BEYOND
    if status in (401, 403) or isinstance(error, PermissionError):
        return DENIED
    if status in (404, 410):
        return MISSING
    if status is not None:
        return REFUSED if 400 <= status < 500 and status not in (408, 425, 429) else None
    if type(error).__name__.startswith(NO_CREDENTIALS):
        return DENIED
    if isinstance(error, FINAL_ERRORS) or type(error).__name__.startswith(FINAL_NAMES):
        return REFUSED
    return REFUSED if isinstance(error, OSError) and error.errno in FINAL_ERRNOS else None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, as the libraries keep it."""
    for _ in range(5):
        if error is None or type(error.__cause__).__module__ == "aiohttp.http_exceptions":  # no HTTP, said as a 400
            return None
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):  # botocore
            with contextlib.suppress(KeyError, TypeError):
                return int(response["ResponseMetadata"]["HTTPStatusCode"])
        for name in ("status", "code"):  # aiohttp, urllib and gcsfs
            if isinstance(value := getattr(error, name, None), int) and 100 <= value < 600:
                return value
        error = error.__cause__
    return None
