"""The members of a tar file by their offsets, with every defect an error.

Python's `tarfile` ends quietly at a damaged header, and may loop for ever at a negative size; here headers are read by
its `TarInfo`, and the walk from one to the next is our own. GNU's long names and the paths and sizes of pax (POSIX
1003.1-2001) are read; sparse members are refused.
"""

import os
import tarfile
from collections.abc import Iterator

from ..errors import SettingError

MAX_HEADER = 1 << 20  # bytes of a long name or of pax records
AS_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
WITHOUT_DATA = (*AS_LINKS, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def list_tar(path: str) -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Name and row (see `archives`) of each file and link of a tar.

    Raises:
        SettingError: it is none, is compressed, damaged or cut off.
    """
    total, offset, name, pax = os.path.getsize(path), 0, "", {}
    with open(path, "rb", buffering=0) as file:
        while True:
            block = os.pread(file.fileno(), tarfile.BLOCKSIZE, offset)
            info = _header(block, path, offset)
            if info is None:
                return
            kind, start = info.type, offset + tarfile.BLOCKSIZE
            size = _whole(pax.get("size"), path, offset) if "size" in pax else info.size
            length = 0 if kind in WITHOUT_DATA else size
            if size < 0 or start + length > total:
                raise _damaged(path, offset, "is cut off" if size >= 0 else "has a negative size")
            offset = start + -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                if length > MAX_HEADER:
                    raise _damaged(path, offset, "has an extended header of impossible size")
                data = os.pread(file.fileno(), length, start)
                if kind == tarfile.GNUTYPE_LONGNAME:
                    name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                else:
                    pax = _parse_pax(data, path, offset)
                continue
            if kind in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
                continue
            if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax):
                raise _damaged(path, offset, "holds a sparse member", "write the archive without --sparse")
            found = pax.get("path") or name or info.name
            name, pax = "", {}
            if kind in AS_LINKS:
                yield found, (start, 0, 0, -1, -1)
            elif kind in tarfile.REGULAR_TYPES and not (kind == tarfile.AREGTYPE and found.endswith("/")):
                yield found, (start, size, size, 0, -1)


def _header(block: bytes, path: str, offset: int) -> tarfile.TarInfo | None:
    """A header; None at the end of the archive."""
    if len(block) < tarfile.BLOCKSIZE:
        if offset == 0:
            raise _damaged(path, offset, "is no tar archive")
        raise _damaged(path, offset, "is cut off: its end mark is missing")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:
        return None
    except tarfile.HeaderError as error:
        if offset == 0:
            remedy = "name a plain .tar; a compressed one can't be read at random: unpack it first (gunzip, unzstd)"
            raise _damaged(path, offset, "is no tar archive", remedy) from None
        raise _damaged(path, offset, f"is damaged ({error})") from None


def _parse_pax(data: bytes, path: str, offset: int) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n`, LENGTH counting the whole record."""
    found, at = {}, 0
    while at < len(data):
        head, space, _ = data[at : at + 20].partition(b" ")
        length = _whole(head.decode("ascii", "replace"), path, offset)
        if not space or not len(head) + 2 < length <= len(data) - at:
            raise _damaged(path, offset, "has a damaged extended header")
        key, _, value = data[at + len(head) + 1 : at + length - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    return found


def _whole(text: str, path: str, offset: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _damaged(path, offset, "has a damaged extended header")
    return int(text)


def _damaged(path: str, offset: int, problem: str, remedy: str = "") -> SettingError:
    remedy = remedy or "fetch the archive again, or write it again"
    return SettingError("archive", f"{problem} (at byte {offset:,})", remedy, path)
