"""The dataset: a mixture of annotation files, seen as one list of samples."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .base import BaseFacts
from .conversation import Encoded, encode
from .errors import MediaError, RecordError, SettingError
from .index import OffsetIndex, scan
from .media import MAX_PIXELS, ImageFolder, load_image
from .records import Record, parse_record
from .templates import get_template
from .tiling import DynamicTiling
from .tokens import TextTokenizer


@dataclass(frozen=True)
class Source:
    """One annotation file of the mixture."""

    name: str
    index: OffsetIndex
    folder: ImageFolder
    repeat: float


@DATASETS.register_module()
class MultimodalDataset(Dataset):
    """Conversations about pictures, from LLaVA-style json and jsonl files, ready for a model directory.

    A raw record (see `records` for every form):

        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                             {"from": "gpt", "value": "A cat."}]}

    Args:
        base: official-format model directory; tokenizer, template, tile size and tokens a tile come from it.
        data_paths: annotation files.
        image_folders: one a file (None for a file without pictures, or with paths that are complete as they
            stand); or None for all.
        repeat_times: how often each file is used in an epoch; 0.5 takes a fixed random half, 3.5 everything
            three times and half of it once more. Default 1.
        min_tiles, max_tiles, use_thumbnail, template: in place of what the base's config.json says.
        max_length: most tokens a sample may have; a longer one is an error.
        max_pixels: larger pictures are refused.
        seed: decides which records a fraction in `repeat_times` takes.

    `dataset[i]` is a dict:
        input_ids: int64 `[s]`.
        labels: int64 `[s]`, -100 where nothing is learned.
        tiles: uint8 `[T, 3, S, S]`; T is 0 without pictures.
        source: 'file:line' of the record.
        num_media: how many pictures it has.

    Raises:
        SettingError: at construction, for whatever can't be used in the settings above.
        RecordError: at access, for a record or picture that can't be used, with its `file:line`.
    """

    def __init__(self, base: str, data_paths: str | Sequence[str], image_folders=None,
                 repeat_times: Sequence[float] | None = None, *, min_tiles: int | None = None,
                 max_tiles: int | None = None, use_thumbnail: bool | None = None, template: str | None = None,
                 max_length: int = 4096, max_pixels: int = MAX_PIXELS, seed: int = 0):
        self.facts = BaseFacts.read(base, min_tiles=min_tiles, max_tiles=max_tiles,
                                    use_thumbnail=use_thumbnail, template=template)
        self.template = get_template(self.facts.template)
        self.tokenizer = TextTokenizer.from_pretrained(base)
        if not isinstance(max_length, int) or max_length < 1:
            raise SettingError("max_length", f"max_length={max_length!r} is no length", "give a positive number")
        self.max_length, self.max_pixels, self.seed = max_length, max_pixels, seed
        self.sources = _open_sources(data_paths, image_folders, repeat_times)
        self._picks = [_pick(len(source.index), source.repeat, seed + number)
                       for number, source in enumerate(self.sources)]
        self._ends = np.cumsum([len(pick) for pick in self._picks])

    @property
    def tiling(self) -> DynamicTiling:
        return self.facts.tiling

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the file, number of the record in it) of a sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, int(self._picks[number][index - (self._ends[number - 1] if number else 0)])

    def record(self, number: int, row: int) -> Record:
        """The checked record `row` of file `number`, without its pictures.

        Raises:
            RecordError: the record can't be used.
        """
        offsets = self.sources[number].index
        return parse_record(offsets.parse(row), offsets.source(row))

    def __getitem__(self, index: int) -> dict:
        return self.load(*self.locate(index))

    def load(self, number: int, row: int) -> dict:
        """The sample of record `row` of file `number` (see the class).

        Raises:
            RecordError: the record or one of its pictures can't be used.
        """
        record = self.record(number, row)
        tiles = self.load_tiles(record, self.sources[number].folder)
        sample = encode(record, self.template, self.tokenizer, [len(part) for part in tiles],
                        self.facts.tokens_per_tile)
        self._check_length(sample, record)
        size = self.tiling.tile_size
        return {
            "input_ids": torch.from_numpy(sample.input_ids),
            "labels": torch.from_numpy(sample.labels),
            "tiles": torch.cat(tiles) if tiles else torch.empty(0, 3, size, size, dtype=torch.uint8),
            "source": record.source,
            "num_media": len(tiles),
        }

    def load_tiles(self, record: Record, folder: ImageFolder) -> list[torch.Tensor]:
        """Tiles of each of a record's pictures, uint8 `[T_i, 3, S, S]`; several share the tile limit.

        Raises:
            RecordError: a picture can't be used.
        """
        media = record.media
        rule = self.tiling.limited(self.tiling.max_tiles // len(media)) if len(media) > 1 else self.tiling
        try:
            for medium in media:
                if medium.kind == "video":
                    raise MediaError("video", "videos can't be read yet", "remove the record", medium.name)
            return [rule(load_image(folder.resolve(medium.name), self.max_pixels)) for medium in media]
        except MediaError as error:
            raise error.in_record(record.source) from None

    def _check_length(self, sample: Encoded, record: Record) -> None:
        if len(sample) > self.max_length:
            image_tokens = sum(length for _, length in sample.spans)
            raise RecordError("too_long", f"{len(sample)} tokens ({image_tokens} of them its pictures'), "
                              f"max_length is {self.max_length}", "raise max_length or lower max_tiles",
                              record.source)


def _as_list(value, number: int, name: str) -> list:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * number
    if len(values) != number:
        raise SettingError(name, f"{name} has {len(values)} entries for {number} data_paths", "give one for each")
    return values


def _open_sources(data_paths, image_folders, repeat_times) -> list[Source]:
    paths = [data_paths] if isinstance(data_paths, (str, os.PathLike)) else list(data_paths)
    if not paths:
        raise SettingError("data_paths", "data_paths is empty", "give at least one annotation file")
    folders = _as_list(image_folders, len(paths), "image_folders")
    repeats = [1.0 if repeat is None else repeat for repeat in _as_list(repeat_times, len(paths), "repeat_times")]
    for repeat in repeats:
        if isinstance(repeat, bool) or not isinstance(repeat, (int, float)) or not 0 < repeat < 1e6:
            raise SettingError("repeat_times", f"repeat_times holds {repeat!r}", "give positive numbers")
    return [Source(Path(path).stem, scan(path), ImageFolder(folder, Path(path).parent), float(repeat))
            for path, folder, repeat in zip(paths, folders, repeats, strict=True)]


def _pick(num_records: int, repeat: float, seed: int) -> np.ndarray:
    """Numbers of the records that a file contributes to an epoch: whole rounds, then a random part of one."""
    whole = int(repeat)
    rest = int((repeat - whole) * num_records + 0.5)
    if whole == 0 and rest == 0:
        rest = 1
    rounds = np.tile(np.arange(num_records, dtype=np.int32), whole)
    part = np.sort(np.random.default_rng(seed).permutation(num_records)[:rest]).astype(np.int32)
    return np.concatenate([rounds, part])
