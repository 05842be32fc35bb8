"""Images that are no files of their own: objects in a store, and members of a zip archive."""

import logging
import os
import posixpath
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from ...errors import MediaError, SettingError
from ...files import is_url, local_path, masked, split_zip
from ..stores import MANY_MEMBERS, ZIP, Store
from .media import Blob, ImageFolder, check_name

HEAD = 1 << 16  # bytes that are read to know an image's size
HEADED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # formats that say it before the pixels: JPEG and PNG


class StoredImage(Blob):
    """An image or video in a store; its bytes are read when they are asked for, once.

    Attributes:
        name: what messages call it.
        key: its name below the prefix.
    """

    def __init__(self, store: Store, key: str):
        self.__dict__.update(name=store.place(key), key=key, _store=store, _data=None)

    @property
    def data(self) -> bytes:
        """The bytes.

        Raises:
            MediaError, SourceError: as `Store.read`.
        """
        if self._data is None:
            self.__dict__["_data"] = self._store.read(self.key)
        return self._data

    def head(self) -> bytes | None:
        """The first bytes, where they tell the size and the whole isn't here already.

        Raises:
            MediaError, SourceError: as `Store.read`.
        """
        if self._data is None and not self._store.is_zip:
            head = self._store.read(self.key, 0, HEAD)
            if len(head) == HEAD and head.startswith(HEADED):
                return head
            if len(head) != HEAD:  # all of it: a shorter file, or a store that gives whole objects only
                self.__dict__["_data"] = head
        return None


class StoreImages:
    """Turns names in records into images below the prefix of a store; see `Store` for the arguments.

    Attributes:
        folder: what messages call the prefix.
        is_named: whether an entry of `image_folders` names it; else it is where the annotation file lies.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, is_named: bool = True):
        self.store, self.is_named = Store(url, options), is_named
        self.folder = self.store.shown

    def key(self) -> tuple:
        """What decides which image a name means, apart from the images of a store themselves."""
        return "store", self.store.key()

    def resolve(self, name: str | Blob) -> Blob:
        """The image `name` of a record, or one that a record holds itself; nothing is read yet.

        Raises:
            MediaError: as `check_name`.
        """
        if isinstance(name, Blob):
            return name
        check_name(name := name.replace("\\", "/"), self.folder)  # no object's name holds the one of Windows
        return StoredImage(self.store, posixpath.normpath(name))


def open_images(
    folder: str | os.PathLike | None, base: str | os.PathLike, options: Mapping[str, Any] | None = None
) -> ImageFolder | StoreImages:
    """What an entry of `image_folders` names: a folder, a zip, a folder in one, a store, or None.

    Args:
        base: what names are relative to without a folder, see `ImageFolder`; it may be in a store, too.
        options: fsspec's `storage_options`.

    Raises:
        SettingError: it isn't there, or is no whole zip.
    """
    folder = None if folder is None else local_path(os.fspath(folder))
    if is_url(folder):
        return StoreImages(folder, options)
    if folder is None and is_url(base):
        return StoreImages(base, options, is_named=False)
    path, inside = split_zip(folder or "")
    if not path:
        return ImageFolder(folder, base)
    images = StoreImages(f"{ZIP}://{inside}::{path}")
    try:
        count = images.store.members()
    except MediaError as error:
        raise SettingError("image_folders", masked(error.problem), error.remedy, folder) from None
    if count > MANY_MEMBERS:
        problem = f"{count:,} members, whose list takes {count * 1.4e-6:.2f} GB of each process"
        print_log(f"{folder}: {problem}; unzip it for several workers", "current", logging.WARNING)
    return images
