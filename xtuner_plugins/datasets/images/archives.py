"""Archives whose members are read in place: tar and zip, indexed once, nothing is unpacked.

The index is kept in the cache directory and memory-mapped, so that processes share it:

    CACHE/archive-HASH/   members.npy  int64 [M, 5]: offset, stored bytes, bytes, method, checksum
                          names.npy    uint8, the names one after another;  name_ends.npy  int64 [M]
                          hashes.npy   uint64 [M], sorted hashes of the names;  order.npy  int64 [M], their members

Archives come from strangers: a member is only ever read into memory, never written to a path; its claimed size is
checked before it is read, and what is inflated can't exceed it. Links, encrypted members and other methods than
stored and deflated are refused when a record names them. Of members of the same name the last counts, as for tar.
"""

import hashlib
import os
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ...data_names import is_url, local_path, split_archive
from ..cache import locked, open_array, quick_hash, save
from ..errors import MediaError, SettingError
from ..stores.store import StoreSettings
from ..stores.stored_images import StoreImages
from .media import Blob, ImageFolder, check_name, with_slashes
from .tar import list_tar

FORMAT = "1"  # part of the key; to be raised when the index changes
MAX_MEMBER = 1 << 28  # bytes: larger members are refused, since each is read into memory as a whole
ARRAYS = ("members", "names", "name_ends", "hashes", "order")
LOCAL_HEADER = 30  # bytes before the name in a member's own header (zip, APPNOTE 4.3.7)
STORED, DEFLATED, LINK, ENCRYPTED = 0, 8, -1, -2  # methods; the first two as zip numbers them
NO_CHECKSUM = -1  # of members of tar


class Archive:
    """The members of one tar or zip file.

    Args:
        path: of the file.
        cache_dir: where its index is kept.

    Raises:
        SettingError: it is no whole archive, or the cache can't be written.
    """

    def __init__(self, path: str | os.PathLike, cache_dir: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self.size = os.path.getsize(self.path)
            self.hash = quick_hash(self.path)
            with open(self.path, "rb") as file:
                self.is_zip = file.read(2) == b"PK"
        except OSError as error:
            raise _refused(self.path, f"can't be read ({error.strerror})", "correct the path") from None
        self.directory = Path(cache_dir) / f"archive-{FORMAT}-{self.hash}"
        if not (self.directory / "order.npy").exists():
            with locked(self.directory.with_suffix(".lock")):
                if not (self.directory / "order.npy").exists():  # another process may have listed it meanwhile
                    self._build()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ARRAYS}

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def members(self) -> np.ndarray:
        """int64 `[M, 5]`, see the module."""
        return open_array(self.directory / "members.npy")

    @cached_property
    def names(self) -> np.ndarray:
        return open_array(self.directory / "names.npy")

    @cached_property
    def name_ends(self) -> np.ndarray:
        return open_array(self.directory / "name_ends.npy")

    @cached_property
    def hashes(self) -> np.ndarray:
        return open_array(self.directory / "hashes.npy")

    @cached_property
    def order(self) -> np.ndarray:
        return open_array(self.directory / "order.npy")

    def name(self, number: int) -> str:
        """The name of a member, without `./` before it."""
        first = int(self.name_ends[number - 1]) if number else 0
        return bytes(self.names[first : int(self.name_ends[number])]).decode("utf-8", "surrogateescape")

    def shown(self, number: int) -> str:
        """The name of a member in messages: what isn't UTF-8 in it is replaced."""
        return self.name(number).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def find(self, name: str) -> int | None:
        """The index of the last member of this name."""
        code = _hash(name)
        first, last = (int(np.searchsorted(self.hashes, code, side)) for side in ("left", "right"))
        found = [int(number) for number in self.order[first:last] if self.name(int(number)) == name]
        return max(found, default=None)

    def read(self, number: int) -> bytes:
        """The bytes of a member.

        Raises:
            MediaError: it is a link, encrypted, too large or damaged, or the file has changed since it was indexed.
        """
        offset, stored, size, method, checksum = map(int, self.members[number])
        place = f"{self.path}/{self.shown(number)}"
        if method == LINK:
            raise MediaError("archive_member", "a link, not a file", "put the file itself into the archive", place)
        if method == ENCRYPTED:
            raise MediaError("archive_member", "encrypted", "write the archive without a password", place)
        if method not in (STORED, DEFLATED):
            remedy = "write the archive with stored or deflated members"
            raise MediaError("archive_member", f"compressed by zip's method {method}", remedy, place)
        if max(size, stored) > MAX_MEMBER:
            problem = f"{max(size, stored):,} bytes; at most {MAX_MEMBER:,} are read"
            raise MediaError("archive_member", problem, "put the file into a folder", place)
        data = self._read(offset, stored, place)
        if method == DEFLATED:
            data = _inflate(data, size, place)
        if len(data) != size or checksum != NO_CHECKSUM and zlib.crc32(data) != checksum:
            raise MediaError("archive_member", "damaged: its checksum differs", "fetch the archive again", place)
        return data

    def _read(self, offset: int, length: int, place: str) -> bytes:
        """Bytes of the file, opened each time, since processes can't share a handle."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    remedy = "start again, the archive is then indexed again"
                    raise MediaError("file_changed", "the archive has changed since it was opened", remedy, place)
                if self.is_zip:
                    header = os.pread(file.fileno(), LOCAL_HEADER, offset)
                    if len(header) != LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                        raise MediaError("archive_member", "damaged: no header", "fetch the archive again", place)
                    lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                    offset += LOCAL_HEADER + sum(lengths)
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            problem = f"the archive can't be read any more ({error.strerror})"
            raise MediaError("file_gone", problem, "keep archives in place while they are used", place) from None

    def _build(self) -> None:
        rows, names = [], []
        for name, row in _list_zip(self.path) if self.is_zip else list_tar(self.path):
            names.append(posixpath.normpath(name).encode("utf-8", "surrogateescape"))
            rows.append(row)
        if not rows:
            raise _refused(self.path, "holds no files", "name an archive with files")
        codes = np.array([_hash_bytes(name) for name in names], np.uint64)
        order = np.argsort(codes, kind="stable")
        arrays = {
            "members": np.array(rows, np.int64).reshape(-1, 5),
            "names": np.frombuffer(b"".join(names), np.uint8),
            "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
            "hashes": codes[order],
            "order": order.astype(np.int64),
        }
        for name, array in arrays.items():  # `order` last: it tells that the others are there
            save(self.directory / f"{name}.npy", array)


def open_images(
    folder: str | os.PathLike | None,
    base: str | os.PathLike,
    cache_dir: str | os.PathLike,
    *,
    windows_paths: bool = False,
    stores: StoreSettings | None = None,
) -> "ImageFolder | ArchiveImages | StoreImages":
    """What an entry of `image_folders` names: a folder, an archive, a folder in one, a store, or None.

    Args:
        base: what names are relative to without a folder, see `ImageFolder`; it may be in a store, too.
        stores: how stores are read.

    Raises:
        SettingError: it isn't there, can't be reached, or is no whole archive.
    """
    stores = stores or StoreSettings()
    folder = None if folder is None else local_path(os.fspath(folder))
    if is_url(folder) or stores.has_backend:
        return StoreImages(folder or "", cache_dir, stores, windows_paths=windows_paths)
    if folder is None and is_url(base):
        images = StoreImages(base, cache_dir, stores, windows_paths=windows_paths, look=False)
        images.is_named = False
        return images
    if folder is not None and split_archive(folder)[0]:
        return ArchiveImages(folder, cache_dir, windows_paths=windows_paths)
    return ImageFolder(folder, base, windows_paths=windows_paths)


class ArchiveImages:
    """Images in archives by their names in records, as `ImageFolder` for a folder.

    Args:
        path: the entry of `image_folders`: an archive, or a folder in one (`a.zip/train`).
        cache_dir: where the archive's index is kept.
        windows_paths: as for `ImageFolder`.

    Raises:
        SettingError: as `Archive`.
    """

    def __init__(self, path: str | os.PathLike, cache_dir: str | os.PathLike, *, windows_paths: bool = False):
        self.folder = os.fspath(path)
        file, self.inside = split_archive(self.folder)
        self.archive = Archive(file, cache_dir)
        self.windows_paths = windows_paths

    def plain(self, name: str) -> str:
        """A name as it is looked up."""
        return with_slashes(name) if self.windows_paths and isinstance(name, str) else name

    def key(self) -> tuple:
        """What decides which image a name means, and with the archive's hash also the images."""
        return "archive", self.archive.hash, self.inside, self.windows_paths

    def resolve(self, name: str) -> Blob:
        """The image `name` of a record.

        Raises:
            MediaError: as `check_name` and `Archive.read`, or there is no such member.
        """
        check_name(name := self.plain(name), self.folder)
        number = self.archive.find(posixpath.normpath(posixpath.join(self.inside, name)))
        if number is None:
            place = f"{self.folder}/{name}"
            raise MediaError("image_missing", "no such member of the archive", self._remedy(name), place)
        return Blob(f"{self.folder}/{name}", self.archive.read(number))

    def _remedy(self, name: str) -> str:
        if "\\" in name:
            return "where \\ separates folders, set windows_paths=True in dataset_settings"
        first = self.archive.shown(0)
        return f"correct the name, or name the folder in it (ARCHIVE/FOLDER); its first member is {first[:80]!r}"

    def listing(self) -> tuple[set[str], list[str]]:
        """(names of the members below the folder, links), for `folders.FolderFiles`."""
        head = f"{self.inside}/" if self.inside else ""
        names = map(self.archive.name, range(len(self.archive)))
        return {name.removeprefix(head) for name in names if name.startswith(head)}, []


def _list_zip(path: str) -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Name and row of each file of a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except OSError as error:
        raise _refused(path, f"can't be read ({error.strerror or error})", "fetch the archive again") from None
    except Exception as error:  # zipfile's errors about damaged directories have many bases
        problem = f"is no whole zip archive ({' '.join(str(error).split())[:100] or type(error).__name__})"
        raise _refused(path, problem, "fetch it again; it seems to be cut off or damaged") from None
    size = os.path.getsize(path)
    for info in infos:
        if info.filename.endswith("/"):
            continue
        if not (0 <= info.header_offset <= size and 0 <= info.compress_size <= size and 0 <= info.file_size < 1 << 62):
            raise _refused(path, f"its directory places {info.filename[:80]!r} outside of it", "fetch it again")
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        method = ENCRYPTED if info.flag_bits & 1 else LINK if is_link else info.compress_type
        yield info.filename, (info.header_offset, info.compress_size, info.file_size, method, info.CRC)


def _inflate(data: bytes, size: int, place: str) -> bytes:
    """A deflated member; never more than `size` bytes and one."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise MediaError("archive_member", f"damaged ({error})", "fetch the archive again", place) from None


def _refused(path: str, problem: str, remedy: str) -> SettingError:
    return SettingError("archive", problem, remedy, path)


def _hash(name: str) -> np.uint64:
    return np.uint64(_hash_bytes(name.encode("utf-8", "surrogateescape")))


def _hash_bytes(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
