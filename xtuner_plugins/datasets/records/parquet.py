"""Records of a Parquet file whose rows carry their images: read in sequence, images written out as files."""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..errors import RecordError, SettingError
from ..images.media import SENT_FORMATS

BATCH = 256  # rows read at a time: images of a few 100 kB each fit in memory


class ParquetRows:
    """The rows of a Parquet file, each a dict of its columns.

    Args:
        path: the file.
        columns: the columns that are read.

    Raises:
        SettingError: it is no Parquet file, or lacks one of the columns.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        import pyarrow
        import pyarrow.parquet

        self.path, self.columns = os.fspath(path), list(columns)
        try:
            self._file = pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            problem = " ".join(str(error).split())[:200]
            raise SettingError(
                "files", f"{self.path} is no whole Parquet file ({problem})", "download it again"
            ) from None
        present = self._file.schema_arrow.names
        if absent := [name for name in self.columns if name not in present]:
            raise SettingError(
                "files",
                f"{self.path} has the columns {', '.join(present)}, not {', '.join(absent)}",
                "name the data set's own file",
            )

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def source(self, number: int) -> str:
        """`file:row` of a row, counted from 1."""
        return f"{self.path}:{number + 1}"

    def __iter__(self) -> Iterator[dict]:
        for batch in self._file.iter_batches(BATCH, columns=self.columns):
            yield from batch.to_pylist()


def write_image(data: bytes, folder: Path, source: str) -> str:
    """Write an image as it is under a name made from its content; returns the name, relative to `folder`.

    The same image of several rows or files becomes one file. `source` is `file:row`.

    Raises:
        RecordError: it is no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=SENT_FORMATS) as image:
            suffix = image.format.lower().replace("jpeg", "jpg")
    except (OSError, TypeError, ValueError, Image.DecompressionBombError):
        raise RecordError("image_unreadable", "its image can't be read", "download the file again", source) from None
    name = hashlib.blake2b(data, digest_size=12).hexdigest()
    path = folder / name[:2] / f"{name}.{suffix}"
    if not path.exists() or path.stat().st_size != len(data):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return path.relative_to(folder).as_posix()
