"""Archives whose members are read in place: tar and zip, indexed once, nothing is unpacked.

The index is kept in the cache directory and memory-mapped, so that processes share it:

    CACHE/archive-HASH/index.npy   int64, one after the other (`Listing`):
        [2]     M, the number of members, and B, the bytes of their names
        [M, 5]  members: offset, stored bytes, bytes, method, checksum
        [M]     where each name ends in the names
        [M]     sorted hashes of the names, as uint64
        [M]     the members of these hashes
        [B]     the names one after another, as uint8, filled up to a whole number

HASH is that of the listing and of the file's size, time and ends, and is remembered with the file's `stat_stamp`: a
file that was replaced is listed again even where it kept its size and time, and one that was only moved or copied with
its time gets the same index. A process keeps the maps of `MAX_OPEN` archives.

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
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...data_names import is_url, local_path, split_archive
from ..cache import locked, open_array, quick_hash, remembered_hash, save, stat_stamp
from ..errors import MediaError, SettingError, out_of_files
from ..stores.store import StoreSettings
from ..stores.stored_images import StoreImages
from ..unused import mark_used
from .media import Blob, ImageFolder, check_name, with_slashes
from .tar import list_tar

FORMAT = "2"  # part of the key; to be raised when the index changes
MAX_MEMBER = 1 << 28  # bytes: larger members are refused, since each is read into memory as a whole
MAX_OPEN = 4096  # indices that a process keeps mapped; the kernel allows 65,530 maps (vm.max_map_count)
LOCAL_HEADER = 30  # bytes before the name in a member's own header (zip, APPNOTE 4.3.7)
STORED, DEFLATED, LINK, ENCRYPTED = 0, 8, -1, -2  # methods; the first two as zip numbers them
NO_CHECKSUM = -1  # of members of tar


class Listing(NamedTuple):
    """The index of an archive, see the module."""

    members: np.ndarray
    name_ends: np.ndarray
    hashes: np.ndarray
    order: np.ndarray
    names: np.ndarray


@lru_cache(MAX_OPEN)
def _open_listing(directory: str) -> Listing:
    mark_used(directory)  # also in workers that weren't forked
    words = np.asarray(open_array(f"{directory}/index.npy"))
    num_members, num_bytes = words[:2].tolist()
    members, name_ends, hashes, order, names = np.split(words[2:], np.cumsum([5, 1, 1, 1]) * num_members)
    return Listing(members.reshape(-1, 5), name_ends, hashes.view(np.uint64), order, names.view(np.uint8)[:num_bytes])


class Archive:
    """The members of one tar or zip file.

    Args:
        path: of the file.
        cache_dir: where its index is kept.

    Attributes:
        hash: changes with the list of members, and with the file's size, time and ends.
        directory: of the index.

    Raises:
        SettingError: it is no whole archive, or the cache can't be written.
    """

    def __init__(self, path: str | os.PathLike, cache_dir: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self.stamp = stat_stamp(self.path)
            with open(self.path, "rb") as file:
                self.is_zip = file.read(2) == b"PK"

            def build() -> str:
                return self._build(cache_dir)

            self.hash = remembered_hash(self.path, cache_dir, build, f"archive-{FORMAT}")
            self.directory = _directory(cache_dir, self.hash)
            mark_used(self.directory)
            if not os.path.exists(f"{self.directory}/index.npy"):  # was deleted from the cache
                self.hash = build()
        except OSError as error:
            raise out_of_files(error, SettingError, self.path) or _refused(
                self.path, f"can't be read ({error.strerror})", "correct the path"
            ) from None

    def __len__(self) -> int:
        return len(self.listing.members)

    @property
    def listing(self) -> Listing:
        """The index, mapped."""
        return _open_listing(self.directory)

    def name(self, number: int) -> str:
        """The name of a member, without `./` before it."""
        listing = self.listing
        first = int(listing.name_ends[number - 1]) if number else 0
        return bytes(listing.names[first : int(listing.name_ends[number])]).decode("utf-8", "surrogateescape")

    def shown(self, number: int) -> str:
        """The name of a member in messages: what isn't UTF-8 in it is replaced."""
        return self.name(number).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def find(self, name: str) -> int | None:
        """The index of the last member of this name."""
        code, listing = np.uint64(_hash_name(name.encode("utf-8", "surrogateescape"))), self.listing
        first, last = (int(np.searchsorted(listing.hashes, code, side)) for side in ("left", "right"))
        found = [int(number) for number in listing.order[first:last] if self.name(int(number)) == name]
        return max(found, default=None)

    def read(self, number: int) -> bytes:
        """The bytes of a member.

        Raises:
            MediaError: it is a link, encrypted, too large or damaged, or the file has changed since it was indexed.
        """
        offset, stored, size, method, checksum = self.listing.members[number].tolist()
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
                self._check_unchanged(file.fileno(), place)
                if self.is_zip:
                    header = os.pread(file.fileno(), LOCAL_HEADER, offset)
                    if len(header) != LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                        raise MediaError("archive_member", "damaged: no header", "fetch the archive again", place)
                    lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                    offset += LOCAL_HEADER + sum(lengths)
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            problem = f"the archive can't be read any more ({error.strerror})"
            raise out_of_files(error, MediaError, place) or MediaError(
                "file_gone", problem, "keep archives in place while they are used", place
            ) from None

    def _check_unchanged(self, descriptor: int, place: str) -> None:
        stamp = stat_stamp(descriptor)
        if stamp == self.stamp:
            return
        # With size and time as they were, perhaps only permissions, links or the inode have changed: then go on.
        try:
            is_same = stamp[:2] == self.stamp[:2] and _hash(self.path, *_list(self.path, self.is_zip)) == self.hash
        except SettingError:  # it is no whole archive any more
            is_same = False
        if not is_same:
            remedy = "start again, the archive is then indexed again"
            raise MediaError("file_changed", "the archive has changed since it was opened", remedy, place)
        self.stamp = stamp

    def _build(self, cache_dir: str | os.PathLike) -> str:
        """List the archive; returns its hash."""
        rows, names = _list(self.path, self.is_zip)
        if not names:
            raise _refused(
                self.path, "holds no files", "take an empty shard out of its folder, or name another archive"
            )
        found = _hash(self.path, rows, names)
        directory = Path(_directory(cache_dir, found))
        with locked(directory.with_suffix(".lock")):
            if not (directory / "index.npy").exists():  # of the same content elsewhere, perhaps
                save(directory / "index.npy", _index(rows, names))
        return found


def _list(path: str, is_zip: bool) -> tuple[np.ndarray, list[bytes]]:
    """(int64 `[M, 5]`, the names) of the members."""
    rows, names = [], []
    for name, row in _list_zip(path) if is_zip else list_tar(path):
        names.append(posixpath.normpath(name).encode("utf-8", "surrogateescape"))
        rows.append(row)
    return np.array(rows, np.int64).reshape(-1, 5), names


def _hash(path: str, rows: np.ndarray, names: list[bytes]) -> str:
    digest = hashlib.blake2b(quick_hash(path).encode(), digest_size=16)
    digest.update(rows.data)
    for name in names:
        digest.update(len(name).to_bytes(8, "little") + name)
    return digest.hexdigest()


def _index(rows: np.ndarray, names: list[bytes]) -> np.ndarray:
    """The content of an index, see the module."""
    text = b"".join(names)
    codes = np.array([_hash_name(name) for name in names], np.uint64)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    filled = np.frombuffer(text + bytes(-len(text) % 8), np.int64)
    head = np.array([len(names), len(text)])
    return np.concatenate([head, rows.ravel(), ends, codes[order].view(np.int64), order, filled])


def _directory(cache_dir: str | os.PathLike, hash: str) -> str:
    return os.path.join(os.fspath(cache_dir), f"archive-{FORMAT}-{hash}")


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


def _hash_name(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
