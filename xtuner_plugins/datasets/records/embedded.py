"""Images that rows of tables and samples of tar shards bring along, by names that say where they are."""

import re
from typing import Protocol

from ..images.archives import ArchiveImages
from ..images.media import EMBEDDED_SCHEME, ImageFolder, MediaSource

NAME = re.compile(EMBEDDED_SCHEME + r"(\d{1,18})/(\d)/(\d{1,9})")


def embedded_name(row: int, number: int, column: int = 0) -> str:
    """The name `row://ROW/COLUMN/NUMBER` of an image of a row."""
    return f"{EMBEDDED_SCHEME}{row}/{column}/{number}"


class HoldsImages(Protocol):
    """Records with images of their own."""

    def embedded(self, row: int, column: int, number: int) -> MediaSource:
        """An image of a row: its bytes, or a name in the image folder.

        Raises:
            MediaError: there is none, or it can't be read.
        """


class EmbeddedImages:
    """Images in records, and those that records name otherwise in the image folder.

    Args:
        records: that hold images.
        folder: the entry of `image_folders`.
    """

    def __init__(self, records: HoldsImages, folder: ImageFolder | ArchiveImages):
        self.records, self.inner, self.folder = records, folder, folder.folder

    def plain(self, name: str) -> str:
        """A name as it is looked up."""
        return self.inner.plain(name)

    def key(self) -> tuple:
        """What decides which image a name means, apart from the records."""
        return self.inner.key()

    def resolve(self, name: str) -> MediaSource:
        """The image `name` of a record.

        Raises:
            MediaError: as `HoldsImages.embedded`, or as `resolve` of the image folder.
        """
        place = NAME.fullmatch(name) if isinstance(name, str) else None
        if place is None:
            return self.inner.resolve(name)
        found = self.records.embedded(*map(int, place.groups()))
        return self.inner.resolve(found) if isinstance(found, str) else found
