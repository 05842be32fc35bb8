"""Images in a store by their names in records, as `ImageFolder` has them for a folder."""

import contextlib
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..images.media import Blob, check_name, with_slashes
from .byte_cache import GIB, ByteCache
from .store import Store, StoreSettings

# When kept bytes take the place of the store's: for a day; while the store tells the version that they had; never
FOR_A_DAY, SAME_VERSION, NEVER = "for a day", "same version", "never"
HEAD = 1 << 16  # bytes that are read to know an image's size
HEADED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # formats that say all of it before the pixels: JPEG and PNG


class StoredImage(Blob):
    """An image or video in a store. Its bytes are read when they are asked for, once.

    Attributes:
        name: what messages call it.
        key: its name below the prefix.
    """

    def __init__(self, images: "StoreImages", key: str):
        self.__dict__.update(name=images.store.place(key), key=key, _images=images)
        self.__dict__.update(_head=b"", _data=None, _version=None)

    @property
    def data(self) -> bytes:
        """The bytes.

        Raises:
            MediaError: as `Store.read`.
        """
        if self._data is None and not self._take_kept():
            head = self._head
            rest = self._read(len(head))
            self._keep(rest if head and rest.startswith(head) else head + rest)
        return self._data

    def head(self) -> bytes | None:
        """The first bytes, where they tell the size and the whole isn't here already.

        Raises:
            MediaError: as `Store.read`.
        """
        if self._data is not None or self._take_kept():
            return None
        if not self._head:
            head = self._read(0, HEAD)
            if len(head) != HEAD:  # all of it: a shorter file, or a store that gives whole objects only
                self._keep(head)
                return None
            self.__dict__["_head"] = head
        return self._head if self._head.startswith(HEADED) else None

    def _read(self, first: int, end: int | None = None) -> bytes:
        from ..images.archives import MAX_MEMBER  # here, since that module imports this one

        return self._images.store.read(self.key, first, end, MAX_MEMBER)

    def _take_kept(self) -> bool:
        images = self._images
        if images.cache is None or images.trust == NEVER:
            return False
        if images.trust == SAME_VERSION:
            if self._version is None:
                self.__dict__["_version"] = images.store.stamp(self.key)
            if self._version is None:  # the store tells none
                return False
        self.__dict__["_data"] = images.cache.get(images.cache_name(self.key, self._version))
        return self._data is not None

    def _keep(self, data: bytes) -> None:
        self.__dict__.update(_data=data, _head=b"")
        images = self._images
        if images.cache is not None:
            images.cache.put(images.cache_name(self.key), data)
            if self._version is not None:  # from before the bytes were read
                images.cache.put(images.cache_name(self.key, self._version), data)


class StoreImages:
    """Turns names in records into images below the prefix of a store.

    Args:
        root: the entry of `image_folders`: a URL, or for a backend of MMEngine what stands before the names.
        cache_dir: where their bytes are kept.
        settings: of the dataset.
        windows_paths: as for `ImageFolder`.
        look: whether to check that something is there.

    Attributes:
        is_named: whether an entry of `image_folders` names it; else it is where the annotation file lies.
        trust: when kept bytes are used, `FOR_A_DAY` unless `trusting` changes it.

    Raises:
        SettingError: as `Store` and `Store.look`.
    """

    is_named = True

    def __init__(
        self,
        root: str,
        cache_dir: str | os.PathLike,
        settings: StoreSettings | None = None,
        *,
        windows_paths: bool = False,
        look: bool = True,
    ):
        settings = settings or StoreSettings()
        self.store, self.trust = Store(root, settings), FOR_A_DAY
        self.folder, self.windows_paths = self.store.shown, windows_paths
        limit = int(settings.cache_gib * GIB)
        self.cache = ByteCache(Path(cache_dir) / "images", limit) if limit else None
        if look:
            self.store.look()

    def plain(self, name: str) -> str:
        """A name as it is looked up."""
        return with_slashes(name) if self.windows_paths and isinstance(name, str) else name

    def key(self) -> tuple:
        """What decides which image a name means, apart from the images themselves."""
        return "store", self.store.key(), self.windows_paths

    def cache_name(self, key: str, version: list | None = None) -> str:
        """The name of an image in the cache, or of one of its versions."""
        return "\0".join((self.store.key(), key, *map(str, version or ())))  # names hold no \0

    def resolve(self, name: str) -> StoredImage:
        """The image `name` of a record; nothing is read yet.

        Raises:
            MediaError: as `check_name`.
        """
        check_name(name := self.plain(name), self.folder)
        return StoredImage(self, posixpath.normpath(name))

    def listing(self) -> tuple[set[str], list[str]] | None:
        """(names below the prefix, links), for `folders.FolderFiles`; None where they can't be listed.

        Raises:
            MediaError: as `Store.names`.
        """
        names = self.store.names()
        return None if names is None else (set(names), [])


def store_of(folder: object) -> Store | None:
    """The store behind an image folder; None for files and archives. `folder` may stand behind images in records."""
    return getattr(_behind(folder), "store", None)


@contextlib.contextmanager
def trusting(folders: Iterable[object], trust: str) -> Iterator[None]:
    """Meanwhile the image folders in stores use kept bytes under another condition (`StoreImages.trust`)."""
    stored = [_behind(folder) for folder in folders if store_of(folder) is not None]
    try:
        for images in stored:
            images.trust = trust
        yield
    finally:
        for images in stored:
            images.trust = FOR_A_DAY


def _behind(folder: object) -> object:
    return getattr(folder, "inner", folder)
