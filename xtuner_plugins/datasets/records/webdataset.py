"""Tar shards of WebDataset: members whose names agree up to the first dot of the last part are one sample.

    000017.jpg  000017.json    the record, about the sample's own images (or `000017.0.jpg`, `000017.1.jpg` ...)
    000018.jpg  000018.txt     a caption: the question is the image alone

A `.json` with `conversations`, `messages` or `texts` is the record; any other holds facts about the image, which
img2dataset writes beside the `.txt`. Names of images in a record are those of the sample's members by their last part
(`coco/000017.jpg`) or by what follows the key (`1.jpg`), in its list or in the parts of its turns; with one image on
both sides the name doesn't matter. A record without names has the sample's images in the order of their names in the
shard. Other names lead to the image folder. Of members of the same name the last counts, as for tar.
"""

import contextlib
import os
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cache import locked, open_array, save, text_hash
from ..errors import MediaError, RecordError, SettingError
from ..images.archives import MAX_OPEN, Archive, ArchiveImages
from ..images.media import Blob, ImageFolder
from .embedded import EmbeddedImages, embedded_name
from .record_json import parse_json
from .records import IMAGE
from .rows import TURNS, to_record

IMAGE_SUFFIXES = tuple("jpg jpeg png webp gif bmp tif tiff heic heif avif ppm".split())
SAMPLES = "samples-2.npy"  # beside the index of the archive; to be renamed when it changes
RECORDS = (*TURNS, "texts", "chosen")  # one of these keys makes a .json a record


class Member(NamedTuple):
    """A member of a sample."""

    number: int  # in its archive
    name: str
    suffix: str  # what follows the key, in lower case


class Shard:
    """The samples of one tar: its members, grouped by their keys in the order of their first members.

    Args:
        path: of the tar.
        cache_dir: where its index is kept.

    Raises:
        SettingError: as `Archive`, or it has no samples.
    """

    def __init__(self, path: str, cache_dir: str | os.PathLike):
        self.archive = Archive(path, cache_dir)
        self._path = f"{self.archive.directory}/{SAMPLES}"
        if not os.path.exists(self._path):
            with locked(Path(f"{self.archive.directory}.samples.lock")):
                self._group()
        self.num_samples = len(_open_samples(self._path)[0])
        if not self.num_samples:
            raise SettingError("data_paths", "holds no samples", "name tar shards of WebDataset", path)

    def members(self, sample: int) -> list[Member]:
        """The members of a sample, in the order of their names."""
        ends, numbers = _open_samples(self._path)
        first = int(ends[sample - 1]) if sample else 0
        found = []
        for number in numbers[first : int(ends[sample])].tolist():
            name = self.archive.name(number)
            found.append(Member(number, name, split_name(name)[1]))
        return sorted(found, key=lambda member: _natural(member.suffix))

    def _group(self) -> None:
        groups: dict[str, dict[str, int]] = {}  # key -> name -> the last member of this name
        for number in range(len(self.archive)):
            name = self.archive.name(number)
            key, _ = split_name(name)
            if posixpath.basename(key)[:2] != "__" and posixpath.basename(key)[:1] not in ("", "."):
                groups.setdefault(key, {})[name] = number
        ends = np.cumsum([len(group) for group in groups.values()], dtype=np.int64)
        numbers = [number for group in groups.values() for number in group.values()]
        save(Path(self._path), np.array([len(ends), *ends, *numbers], np.int64))


@lru_cache(MAX_OPEN)
def _open_samples(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(where each sample ends in the second, the members of one sample after another), int64, mapped."""
    words = np.asarray(open_array(path))
    return words[1 : 1 + words[0]], words[1 + words[0] :]


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member's name: `a/b.0.JPG` has the key `a/b` and the suffix `0.jpg`."""
    folder, _, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def _natural(suffix: str) -> tuple:
    """Sorts `2.jpg` before `10.jpg`."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in suffix.split("."))


class WebDatasetRecords:
    """The samples of some shards as one list; a `RecordSource` (see `opening`).

    Args:
        path: the entry of `data_paths`.
        files: the shards, in order.
        cache_dir: where their indices are kept.

    Raises:
        SettingError: as `Shard`.
    """

    def __init__(self, path: str, files: Sequence[str], cache_dir: str | os.PathLike):
        self.path = path
        self.shards = [Shard(file, cache_dir) for file in files]
        self._starts = np.cumsum([0] + [shard.num_samples for shard in self.shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, row: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.shards[number], row - int(self._starts[number])

    def source(self, row: int) -> str:
        """`shard:sample`, counted from 1 in its shard."""
        shard, sample = self._find(row)
        return f"{shard.archive.path}:{sample + 1}"

    def line(self, row: int) -> int:
        """The number of a sample in its shard, counted from 1."""
        return self._find(row)[1] + 1

    def fingerprint(self, cache_dir: str) -> str:
        """Hash of the shards' sizes, times and ends."""
        return text_hash(*(shard.archive.hash for shard in self.shards))

    def reader(self) -> contextlib.nullcontext:
        """For reading in sequence."""
        return contextlib.nullcontext(self)

    def own_images(self, folder: ImageFolder | ArchiveImages) -> EmbeddedImages:
        """The images of the samples, and those that records name otherwise in `folder`."""
        return EmbeddedImages(self, folder)

    def parse(self, row: int) -> object:
        """The raw record of a sample.

        Raises:
            RecordError: it can't be read, or the sample has neither a record nor a caption.
        """
        shard, sample = self._find(row)
        source, members = self.source(row), shard.members(sample)
        names = [embedded_name(row, place) for place, _ in enumerate(_images(members))]
        texts = {}
        for member in members:
            if member.suffix in ("json", "txt"):
                if member.suffix in texts:
                    problem = f"two members {shard.archive.shown(member.number)!r}"
                    raise RecordError("sample", problem, "write each sample once", source)
                texts[member.suffix] = self._read(shard, member, source)
        record = parse_json(texts["json"], source) if "json" in texts else None
        is_record = isinstance(record, dict) and any(key in record for key in RECORDS)
        if "json" in texts and (is_record or "txt" not in texts):
            return _with_images(record, _images(members), names, source) if isinstance(record, dict) else record
        if "txt" in texts:
            return _caption(texts["txt"], names, source)
        found = ", ".join(shard.archive.shown(member.number) for member in members)[:200]
        problem = f"neither .json nor .txt, only {found}"
        raise RecordError("sample", problem, "write the record beside the image", source)

    def embedded(self, row: int, column: int, number: int) -> Blob:
        """As `embedded.HoldsImages`; samples have one column."""
        if row >= len(self) or column:
            raise MediaError("image_missing", "no such sample", "correct the name")
        shard, sample = self._find(row)
        images = _images(shard.members(sample))
        if number >= len(images):
            raise MediaError("image_missing", "the sample has no such image", "correct the name", shard.archive.path)
        return Blob(images[number].name, shard.archive.read(images[number].number))

    @staticmethod
    def _read(shard: Shard, member: Member, source: str) -> bytes:
        try:
            return shard.archive.read(member.number)
        except MediaError as error:
            raise error.in_record(source) from None


def _images(members: Sequence[Member]) -> list[Member]:
    return [member for member in members if member.suffix.rpartition(".")[2] in IMAGE_SUFFIXES]


def _with_images(record: dict, images: list[Member], names: list[str], source: str) -> dict:
    """The record with names of the sample's images in place of its own."""
    key = next((key for key in ("image", "images") if record.get(key) is not None), None)
    given = record[key] if key else []
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return to_record(record, 0, source)  # which the check of the record complains about
    parts = _named_parts(record)
    is_one = len({part[name] for part, name in parts}) == len(names) == 1
    for part, name in parts:
        part[name] = names[0] if is_one else _name_of(part[name], images, names)
    if key is None:
        found = [] if parts else names
    elif len(listed) == len(names) == 1:
        found = names
    else:
        found = [_name_of(name, images, names) for name in listed]
    if found:
        key = key or "image"
        record = record | {key: found[0] if isinstance(given, str) else found}
    return to_record(record, len(found), source)


def _named_parts(record: dict) -> list[tuple[dict, str]]:
    """The parts {"type": "image", "image": NAME} of the turns, and under which key each holds its name."""
    found = []
    for key in TURNS:
        for turn in record[key] if isinstance(record.get(key), list) else []:
            content = turn.get("content") if isinstance(turn, dict) else None
            for part in content if isinstance(content, list) else []:
                if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
                    continue
                name = next((name for name in ("image", "image_url", "path", "url") if part.get(name) is not None), "")
                holder, name = (part[name], "url") if isinstance(part.get(name), dict) else (part, name)
                if isinstance(holder.get(name), str) and not holder[name].startswith("data:"):
                    found.append((holder, name))
    return found


def _name_of(given: str, images: list[Member], names: list[str]) -> str:
    last = given.replace("\\", "/").rpartition("/")[2].lower()
    lasts = [(image.suffix, posixpath.basename(image.name).lower()) for image in images]
    fitting = [name for known, name in zip(lasts, names, strict=True) if last in known]
    return fitting[0] if len(fitting) == 1 else given


def _caption(data: bytes, names: list[str], source: str) -> dict:
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        problem = f"its caption isn't UTF-8 (byte 0x{data[error.start]:02x} at {error.start})"
        raise RecordError("encoding", problem, "save it as UTF-8", source) from None
    question = "\n".join([IMAGE] * len(names))
    return {"image": names, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": text}]}
