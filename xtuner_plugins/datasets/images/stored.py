"""Images that are no files of their own: objects in a store, and members of a zip archive."""

import os
import posixpath
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ...errors import MediaError, SettingError
from ...files import is_url, local_path, masked, split_zip
from ..stores import Store
from .media import Blob, ImageFolder, check_name

HEAD = 1 << 16  # bytes that are read to know an image's size


class StoredImage(Blob):
    """An image or video in a store; its bytes are read when they are asked for, once.

    Args:
        key: its name below the prefix.
    """

    def __init__(self, store: Store, key: str):
        self.name, self.key, self.store = store.place(key), key, store

    @cached_property
    def data(self) -> bytes:
        """The bytes.

        Raises:
            MediaError, SourceError: as `Store.read`.
        """
        return self.store.read(self.key)

    def head(self) -> bytes | None:
        """The first bytes, where reading only these is faster; None: `data` is here, or as fast.

        Raises:
            MediaError, SourceError: as `Store.read`.
        """
        if self.store.archive or "data" in vars(self):
            return None
        head = self.store.read(self.key, 0, HEAD)
        if len(head) != HEAD:  # all of it: a shorter file, or a store that gives whole objects only
            vars(self)["data"] = head
        return head


class StoreImages:
    """Turns names in records into images below the prefix of a store; see `Store` for the arguments.

    Attributes:
        folder: what messages call the prefix.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        self.store = Store(url, options)
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
    if is_url(base if folder is None else folder):
        return StoreImages(base if folder is None else folder, options)
    path, inside = split_zip(folder or "")
    if not path:
        return ImageFolder(folder, base)
    images = StoreImages(f"zip://{inside}::{path}")
    try:
        images.store.version()
    except MediaError as error:
        raise SettingError("image_folders", masked(error.problem), error.remedy, folder) from None
    return images
