"""The dataset: a mixture of annotation files as one list of samples."""

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info

from ..errors import DataError, MediaError, RecordError
from ..hub.constants import IGNORE_INDEX
from ..processes import die_with_parent, leave_signals_to_parent
from ..ranges import REDUCTIONS, check
from . import left_out
from .base import read_base, work_rates
from .images.media import MediaSource
from .images.tiles import degrade, open_tiles
from .images.tiling import DynamicTiling
from .images.video import load_frames
from .mixture import Source, open_sources, pick_records
from .plan.budget import DROPPED, FATES, REJECTED, TRUNCATED, TileBudget, truncate
from .plan.lengths import KEPT, LengthIndex, measure
from .plan.measure import Measure, count_pieces
from .records.records import Medium, Record, parse_record
from .text.conversation import Encoded, join_pieces, tokenize
from .text.tokens import TextTokenizer

SEED = 0  # of what a fraction in `repeat_times` takes, and of JPEG qualities


@DATASETS.register_module()
class MultimodalDataset(Dataset):
    """Conversations about images, from LLaVA-style json and jsonl files, ready for a model directory.

    A raw record (`records` describes every form):

        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                             {"from": "gpt", "value": "A cat."}]}

    Args:
        base: official-format model directory, that of the model (`PlannedTrainLoop` sets it); tokenizer, template, tile
            size and tokens per tile come from it.
        data_paths: annotation files, or meta files of the official code (`meta_file`), which name them.
        image_folders: one per file, or one for all; None for files without images or with complete paths.
        repeat_times: how often each file is used per epoch; 0.5 takes a fixed random half, 3.5 everything three times
            and half of it a fourth time. Default 1.
        dataset_settings: per file a dict or None: name, max_tiles, template, loss_weight, jpeg_quality,
            storage_options, columns (names here -> names in its records: `{"messages": "dialog"}`).
        max_tiles, template: for files without their own; default: the base's config.json.
        jpeg_quality: (lowest, highest) quality of JPEG artifacts on training tiles, drawn per tile, for files without
            their own; None: none. The official recipe's `data_augment` is (75, 100).
        storage_options: fsspec's options for URLs among `data_paths` and `image_folders`, for files without their own.
        loss_reduction: how a sample with n supervised tokens counts in the loss of a step, which is normalized over all
            of the step: each token weighs 1 ('token'), 1/n ('sample': all samples weigh the same) or 1/sqrt(n)
            ('square'), times the `loss_weight` of its file.
        max_length: most tokens of a sample; a longer one loses tiles, then the end of its text (see `budget`).
        on_bad_sample: 'raise' stops at unusable records: before the first step where lengths are measured, otherwise
            at the first one read. 'skip' leaves them out, with an entry in the ledger; too many stop the run.
        num_frames: most frames of a video.
        fast_decoding: False gives the official pixels, True those of faster decoders, a level off here and there;
            'auto' takes the faster per image (see `images.tiles`).
        reject_list: file of records to leave out, written by `tools/check_data.py --reject-list`.

    Lengths are kept between runs in the directory that the environment variable XTUNER_PLUGINS_CACHE names.

    `dataset[i]` is a dict:
        input_ids: int64 `[s]`.
        labels: int64 `[s]`, -100 where nothing is learned.
        tiles: uint8 `[T, 3, S, S]`; T is 0 without images.
        num_tiles: T.
        source: 'file:line' of the record.
        fate: 'fits', 'shrink_tiles' or 'truncate_text', what it took to fit `max_length`.
        index, dataset: index in the mixture, name of the file.
        loss_weight: of each of its tokens, see `loss_reduction`.
    A sample that is left out is {'dropped': reason, 'message', 'source', 'index', 'dataset'}.

    Raises:
        SettingError: at construction, a setting can't be used.
        RecordError: at access, a record or image can't be used; names its `file:line`.
    """

    parse = staticmethod(parse_record)
    may_cut = True  # whether the end of a text may be cut off

    def __init__(
        self,
        base: str | None = None,
        data_paths: str | Sequence[str] = (),
        image_folders=None,
        repeat_times: Sequence[float] | None = None,
        dataset_settings: Sequence[dict | None] | None = None,
        *,
        max_tiles: int | None = None,
        template: str | None = None,
        jpeg_quality: Sequence[int] | None = None,
        storage_options: dict | None = None,
        loss_reduction: str = "token",
        max_length: int = 4096,
        on_bad_sample: str = "raise",
        num_frames: int = 8,
        fast_decoding: bool | str = False,
        reject_list: str | None = None,
    ):
        from ..hub.configuration_internvl_chat import num_image_tokens

        config = read_base(base)
        self.work_rates = work_rates(config)
        self.tokenizer = TextTokenizer.from_pretrained(base)
        self.budget = TileBudget(num_image_tokens(config), max_length, self.may_cut)
        shared = dict(
            max_tiles=max_tiles, template=template, jpeg_quality=jpeg_quality, storage_options=storage_options
        )
        self.sources = open_sources(data_paths, image_folders, repeat_times, dataset_settings, config, shared)
        self.tile_size = self.sources[0].tiling.tile_size
        self.loss_reduction = check("loss_reduction", loss_reduction)
        self.on_bad_sample = check("on_bad_sample", on_bad_sample)
        self.fast_decoding = check("fast_decoding", fast_decoding)
        self.num_frames = check("num_frames", num_frames)
        each = enumerate(self.sources, SEED)
        self.picks = [pick_records(len(source.index), source.repeat, seed) for seed, source in each]
        self.ends = np.cumsum([len(pick) for pick in self.picks])
        self.rejected = left_out.read_reject_list(reject_list, self.sources)
        self._lengths: dict[int, LengthIndex] = {}
        self._plan: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # what `layout` returned
        self._warned: set[str] = set()  # reasons of the warnings that this process has logged

    def keep_images(self) -> None:
        """Leave images as they are, whatever the files' settings say."""
        self.sources = [replace(source, jpeg_quality=None) for source in self.sources]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(index of the file, index of the record in it) of a sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self.ends, index, side="right"))
        return number, int(self.picks[number][index - (self.ends[number - 1] if number else 0)])

    def record(self, number: int, row: int) -> Record:
        """The checked record `row` of file `number`, without its images; raises `RecordError`."""
        index = self.sources[number].index
        return self.parse(index.parse(row), index.source(row))

    def __getitem__(self, index: int) -> dict:
        bind_worker()
        if index == left_out.FILLER_INDEX:
            return left_out.filler_sample(self.tile_size)
        number, row = self.locate(index)
        try:
            if row in self.rejected[number]:
                raise RecordError("rejected", "on the reject list", place=self.sources[number].index.source(row))
            # The same in every process and after a resume.
            rng = np.random.default_rng([SEED, getattr(index, "epoch", 0), int(index) % len(self)])
            sample = self.load(number, row, rng)
            if self._plan is not None:
                self._require_as_planned(index, number, row, sample)
        except DataError as error:
            if self.on_bad_sample == "raise" and error.reason not in left_out.ON_PURPOSE:
                raise
            source = self.sources[number].index.source(row)
            sample = left_out.dropped_sample(error, source, self.tile_size)
        sample.update(index=int(index) % len(self), dataset=self.sources[number].name)
        return sample

    def _require_as_planned(self, index: int, number: int, row: int, sample: dict) -> None:
        """Raise `RecordError` (`plan_changed`) where a sample doesn't have the tokens and tiles that were measured."""
        tokens, tiles, fate = (column[index] for column in self._plan)
        found = len(sample["input_ids"]), sample["num_tiles"]
        if found == (tokens, tiles) or (fate == TRUNCATED and found[0] <= tokens and found[1] <= tiles):
            return
        kept, remedy = self.measuring(number).directory / KEPT, "start again: its file is then measured again"
        with suppress(OSError):
            kept.unlink(missing_ok=True)
        remedy = f"remove {kept} and start again" if kept.exists() else remedy
        problem = f"{found[0]} tokens and {found[1]} tiles, but {tokens} tokens and {tiles} tiles were planned: its "
        problem += "images have changed since they were measured"
        raise RecordError("plan_changed", problem, remedy, self.sources[number].index.source(row))

    def _log_first(self, warnings: Sequence[RecordError]) -> None:
        """Log the first warning of each reason in this process; `tools/check_data.py` counts them all."""
        for each in warnings:
            if each.reason not in self._warned:
                self._warned.add(each.reason)
                told = f"{each} (the first {each.reason} met here; tools/check_data.py counts all)"
                print_log(told, "current", logging.WARNING)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lengths": {}}

    def load(self, number: int, row: int, rng: np.random.Generator | None = None) -> dict:
        """The sample of record `row` of file `number`.

        Args:
            rng: draws the changes of its images, where its file has `jpeg_quality`; None: images as they are.

        Raises:
            RecordError: the record or one of its images can't be used, or (`too_long`) it doesn't fit.
        """
        source, (record, sizes, paths) = self.sources[number], self.measuring(number).open(row)
        self._log_first(record.warnings)
        try:
            opened, sample, fate = self._fit(record, source, sizes, paths)
        except MediaError as error:
            raise error.in_record(record.source) from None
        tiles = torch.cat([torch.empty(0, 3, self.tile_size, self.tile_size, dtype=torch.uint8), *opened])
        if rng is not None and source.jpeg_quality is not None:
            tiles = degrade(tiles, source.jpeg_quality, rng)
        num_supervised = int((sample.labels != IGNORE_INDEX).sum())  # at least one, also of a text that was cut off
        return {
            "input_ids": torch.from_numpy(sample.input_ids),
            "labels": torch.from_numpy(sample.labels),
            "tiles": tiles,
            "num_tiles": len(tiles),
            "source": record.source,
            "fate": FATES[fate],
            "loss_weight": source.loss_weight * num_supervised ** REDUCTIONS[self.loss_reduction],
            **({"branches": sample.branches} if sample.branches else {}),
        }

    def _fit(self, record: Record, source: Source, sizes: list, paths: list[MediaSource]) -> tuple[list, Encoded, int]:
        """Tokenize, open images with as many tiles as fit, truncate: their tiles, the sample, its fate."""
        pieces = tokenize(record, source.template, self.tokenizer)
        text, _, *before = count_pieces([pieces], self.tokenizer)[0].tolist()
        limits, counts, fate = self.budget.fit(source.tiling, sizes, text, before)
        if fate == DROPPED:
            of_images, most = self.budget.tokens(counts), self.budget.max_length
            told = f"{text + of_images} tokens ({of_images} of them its images'), max_length is {most}"
            remedy = "raise max_length or lower max_tiles" if of_images else "raise max_length or shorten the record"
            raise RecordError("too_long", told, remedy, record.source)
        tiles = self._open(record.media, paths, [source.tiling.limited(limit) for limit in limits])
        sample = join_pieces(pieces, self.tokenizer, list(map(len, tiles)), self.budget.tokens_per_tile)
        if fate == TRUNCATED:
            sample = truncate(sample, self.budget.max_length)
        return tiles[: len(sample.spans)], sample, fate

    def _open(self, media: Sequence[Medium], paths: Sequence[MediaSource], tilings: Sequence[DynamicTiling]) -> list:
        tiles, frames = [], []
        for medium, path, tiling in zip(media, paths, tilings, strict=True):
            if medium.kind == "frame":  # those of a video follow each other
                frames = frames or load_frames(path, self.num_frames)
                tiles.append(tiling(frames.pop(0)))
            else:
                tiles.append(open_tiles(path, tiling, self.fast_decoding))
        return tiles

    def lengths(self, number: int, *, num_workers: int | None = None) -> LengthIndex:
        """Measured lengths of file `number`, from the cache or measured now; arguments and errors as `measure`."""
        if number not in self._lengths:
            self._lengths[number] = measure(self.measuring(number), num_workers=num_workers)
        return self._lengths[number]

    def is_measured(self) -> bool:
        """Whether the lengths of every file are in the cache."""
        tasks = map(self.measuring, range(len(self.sources)))
        return all(LengthIndex.open(task.directory) for task in tasks)

    def measuring(self, number: int) -> Measure:
        """What measures the lengths of file `number`."""
        source = self.sources[number]
        return Measure(source.index, source.folder, source.template, self.tokenizer, self.num_frames, self.parse)

    def layout(self, num_workers: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, tiles (int32) and fate (uint8, see `lengths.FATES`) of every sample, in the order of indices.

        Every sample that is read from then on is compared with them: packs and groups rely on them.

        Args:
            num_workers: as `lengths`, whose errors it raises.
        """
        columns = []
        for number, (source, pick) in enumerate(zip(self.sources, self.picks, strict=True)):
            part = self.lengths(number, num_workers=num_workers).lay_out(source.tiling, self.budget)
            part, gone = [column[pick] for column in part], np.isin(pick, list(self.rejected[number]))
            part[0][gone], part[1][gone], part[2][gone] = 0, 0, REJECTED
            columns.append(part)
        self._plan = tuple(map(np.concatenate, zip(*columns, strict=True)))
        return self._plan

    def usable(self, fates: np.ndarray) -> np.ndarray:
        """Indices of the samples that a plan contains, by the fates of `layout`.

        Raises:
            RecordError: unusable records, with on_bad_sample='raise'.
        """
        if self.on_bad_sample == "raise":
            left_out.require_usable(self, fates)
        return np.flatnonzero(fates < DROPPED)


_bound_pid: int | None = None  # of the worker that `bind_worker` has bound


def bind_worker() -> None:
    """Make a DataLoader worker end with the training process, and only with it; does nothing elsewhere or again.

    A plain worker checks for its parent only while it waits for work, and never while a queue blocks it.
    """
    global _bound_pid
    if get_worker_info() is not None and _bound_pid != os.getpid():
        _bound_pid = os.getpid()
        die_with_parent(watch=True)  # any thread may have started the workers
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN:  # so it was forked, but PyTorch has taken SIGTERM back
            leave_signals_to_parent()  # a step that is to be finished needs its batches
