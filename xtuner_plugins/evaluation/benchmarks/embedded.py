"""Images that a TSV file holds in base64, written out once under names made from their content."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from ...datasets.errors import RecordError, SettingError
from ...datasets.records.tables import write_image

# VLMEvalKit's rule (vlmeval/dataset/image_base.py): a shorter cell is the index of the row that holds the image.
LONGEST_REFERENCE = 64


def is_reference(cell: str) -> bool:
    """Whether a cell names another row (or a file) and holds no image."""
    return len(cell) <= LONGEST_REFERENCE


class EmbeddedImages:
    """Images of the rows of one file.

    Args:
        cache: The folder that they are written to; it is made where it isn't there.
        source: The file, for messages.
    """

    def __init__(self, cache: str | Path | None, source: Path):
        self._cache, self._source = None if cache is None else Path(cache), source
        self._names: dict[str, str] = {}

    def write(self, cell: str, index: str | None, place: str) -> str:
        """Write the image of a cell; returns its path. Rows may refer to it by `index` afterwards.

        Raises:
            RecordError: It isn't base64 of an image.
            SettingError: There is no folder to write to.
        """
        if self._cache is None:
            raise SettingError(
                "cache", f"{self._source} holds images in base64, and no cache folder is given", "give one"
            )
        try:
            data = base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError):
            raise RecordError("image", "its image isn't base64", "download the file again", place) from None
        self._cache.mkdir(parents=True, exist_ok=True)
        path = str(self._cache / write_image(data, self._cache, place))
        if index is not None:
            self._names.setdefault(index, path)
        return path

    def of_row(self, index: str) -> str | None:
        """The path of the image that the row with this index holds."""
        return self._names.get(index)
