"""The dataset: a mixture of annotation files as one list of samples."""

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info

from ..errors import DataError, MediaError, RecordError, SettingError, check_choice, check_whole
from ..files import get_cache_dir
from ..hub.constants import IGNORE_INDEX
from ..processes import die_with_parent, leave_signals_to_parent
from ..ranges import REDUCTIONS
from .bad_samples import FILLER_INDEX, ON_PURPOSE, POLICIES, dropped_sample, filler_sample, read_reject_list
from .base import read_base
from .fates import find_broken, unusable_error
from .images.jpeg import degrade
from .images.media import MAX_PIXELS, MediaSource, image_size
from .images.tiles import MODES, open_tiles
from .images.tiling import DynamicTiling
from .images.video import load_frames, probe_video
from .mixture import Source, open_sources, pick_records
from .plan.budget import FRAME, STEPS, TileBudget, first_limit, truncate
from .plan.lengths import DROPPED, FATES, FITS, REJECTED, SHRUNK, TRUNCATED, LengthIndex, measure, report_change
from .plan.measure import Measure
from .records.boxes import normalize_boxes
from .records.records import Medium, Record, expand_videos, parse_record
from .text.conversation import Encoded, join_pieces, split_pieces, tokenize_pieces
from .text.tokens import TextTokenizer


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
        dataset_settings: per file a dict or None: name, min_tiles, max_tiles, use_thumbnail, template, loss_weight,
            jpeg_quality, storage_options, columns (names here -> names in its records: `{"messages": "dialog"}`).
        min_tiles, max_tiles, use_thumbnail, template: for files without their own; default: the base's config.json.
        jpeg_quality: (lowest, highest) quality of JPEG artifacts on training tiles, drawn per tile, for files without
            their own; None: none. The official recipe's `data_augment` is (75, 100).
        storage_options: fsspec's options for URLs among `data_paths` and `image_folders`, for files without their own.
        loss_reduction: how a sample with n supervised tokens counts in the loss of a step, which is normalized over all
            of the step: each token weighs 1 ('token'), 1/n ('sample': all samples weigh the same) or 1/sqrt(n)
            ('square'), times the `loss_weight` of its file.
        max_length: most tokens of a sample.
        tile_sharing: 'equal', 'each' or 'need', how several images share the tiles (see `budget`).
        too_long: what is tried, in this order, on a longer sample: 'shrink_tiles', 'truncate_text'. A sample that is
            still too long is left out, with an entry in the ledger.
        on_bad_sample: 'raise' stops at unusable records: before the first step where lengths are measured, otherwise
            at the first one read. 'skip' leaves them out, with an entry in the ledger.
        max_bad_samples: with 'skip', more than this many per epoch over all ranks stop the run.
        num_frames: most frames of a video.
        fast_decoding: False gives the official pixels, True those of faster decoders, a level off here and there;
            'auto' takes the faster per image (see `images.tiles`).
        max_pixels: larger images are refused.
        cache_dir: where lengths are kept between runs; default: the environment variable XTUNER_PLUGINS_CACHE, or
            `work_dirs/data_index` where it isn't set.
        reject_list: file of records to leave out, written by `tools/check_data.py --reject-list`.
        seed: decides which records a fraction in `repeat_times` takes.

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

    def __init__(
        self,
        base: str | None = None,
        data_paths: str | Sequence[str] = (),
        image_folders=None,
        repeat_times: Sequence[float] | None = None,
        dataset_settings: Sequence[dict | None] | None = None,
        *,
        min_tiles: int | None = None,
        max_tiles: int | None = None,
        use_thumbnail: bool | None = None,
        template: str | None = None,
        jpeg_quality: Sequence[int] | None = None,
        storage_options: dict | None = None,
        loss_reduction: str = "token",
        max_length: int = 4096,
        tile_sharing: str = "equal",
        too_long: Sequence[str] = STEPS,
        on_bad_sample: str = "raise",
        max_bad_samples: int = 100,
        num_frames: int = 8,
        fast_decoding: bool | str = False,
        max_pixels: int = MAX_PIXELS,
        cache_dir: str | None = None,
        reject_list: str | None = None,
        seed: int = 0,
    ):
        if isinstance(too_long, str) or not isinstance(too_long, Sequence):
            raise SettingError("too_long", f"too_long={too_long!r} can't be used", f"give steps out of {STEPS}, or ()")
        from ..hub.configuration_internvl_chat import num_image_tokens

        config = read_base(base)
        self.tokenizer = TextTokenizer.from_pretrained(base)
        self.budget = TileBudget(num_image_tokens(config), max_length, tile_sharing, tuple(too_long))
        self.cache_dir = get_cache_dir(cache_dir)
        shared = {
            "min_tiles": min_tiles,
            "max_tiles": max_tiles,
            "use_thumbnail": use_thumbnail,
            "template": template,
            "jpeg_quality": jpeg_quality,
            "storage_options": storage_options,
        }
        self.sources = open_sources(
            data_paths, image_folders, repeat_times, dataset_settings, config, shared, self.cache_dir
        )
        self.tile_size = self.sources[0].tiling.tile_size
        self.loss_reduction = check_choice("loss_reduction", loss_reduction, tuple(REDUCTIONS))
        self.on_bad_sample = check_choice("on_bad_sample", on_bad_sample, POLICIES)
        self.max_bad_samples = check_whole("max_bad_samples", max_bad_samples, 0)
        self.fast_decoding = check_choice("fast_decoding", fast_decoding, MODES)
        self.num_frames = check_whole("num_frames", num_frames, 1)
        self.max_pixels = check_whole("max_pixels", max_pixels, 1)
        self.seed = check_whole("seed", seed, 0)
        self.picks = [
            pick_records(len(source.index), source.repeat, self.seed + number)
            for number, source in enumerate(self.sources)
        ]
        self.ends = np.cumsum([len(pick) for pick in self.picks])
        self.rejected = read_reject_list(reject_list, self.sources)
        self._lengths: dict[int, LengthIndex] = {}
        self._plan: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # what `layout` returned
        self._plan_folders: list[Path] = []  # of the lengths behind `_plan`, one per file
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
        """The checked record `row` of file `number`, without its images.

        Raises:
            RecordError: the record can't be used.
        """
        index = self.sources[number].index
        return self.parse(index.parse(row), index.source(row))

    def __getitem__(self, index: int) -> dict:
        bind_worker()
        if index == FILLER_INDEX:
            return filler_sample(self.tile_size)
        number, row = self.locate(index)
        try:
            if row in self.rejected[number]:
                raise RecordError("rejected", "on the reject list", place=self.sources[number].index.source(row))
            rng = self._generator(index) if self.sources[number].jpeg_quality else None
            if self._plan is None:
                sample = self.load(number, row, rng)
            else:
                sample = self._load_as_planned(index, number, row, rng)
        except DataError as error:
            if self.on_bad_sample == "raise" and error.reason not in ON_PURPOSE:
                raise
            source = self.sources[number].index.source(row)
            sample = dropped_sample(error, source, self.tile_size, self.max_bad_samples)
        sample.update(index=int(index) % len(self), dataset=self.sources[number].name)
        return sample

    def _generator(self, index: int) -> np.random.Generator:
        """What draws the changes of a sample's images, the same in every process and after a resume."""
        return np.random.default_rng([self.seed, getattr(index, "epoch", 0), int(index) % len(self)])

    def _load_as_planned(self, index: int, number: int, row: int, rng: np.random.Generator | None) -> dict:
        """As `load`, for a sample whose tokens and tiles have been planned.

        Raises:
            RecordError: as `load`, or (`plan_changed`) the sample doesn't have the tokens and tiles that were measured.
        """
        tokens, tiles, fate = (column[index] for column in self._plan)
        try:
            sample = self.load(number, row, rng)
        except RecordError as error:
            if error.reason != "too_long" or fate >= DROPPED:
                raise
            raise self._changed(number, row, error.problem, tokens, tiles) from None
        found = len(sample["input_ids"]), sample["num_tiles"]
        if found != (tokens, tiles) and not (fate == TRUNCATED and found[0] <= tokens and found[1] <= tiles):
            raise self._changed(number, row, f"{found[0]} tokens and {found[1]} tiles", tokens, tiles)
        return sample

    def _changed(self, number: int, row: int, found: str, tokens: int, tiles: int) -> RecordError:
        remedy = "start again: the lengths of its file are then measured again"
        try:
            report_change(self._plan_folders[number])
        except SettingError:
            remedy = f"remove {self._plan_folders[number].parent} and start again"
        return RecordError(
            "plan_changed",
            f"{found}, but {tokens} tokens and {tiles} tiles were planned: its images have changed since they were "
            "measured",
            remedy,
            self.sources[number].index.source(row),
        )

    def _log_first(self, warnings: Sequence[RecordError]) -> None:
        """Log the first warning of each reason in this process; `tools/check_data.py` counts them all."""
        for warning in warnings:
            if warning.reason not in self._warned:
                self._warned.add(warning.reason)
                print_log(
                    f"{warning} (the first {warning.reason} met here; tools/check_data.py counts all)",
                    "current",
                    logging.WARNING,
                )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lengths": {}}

    def load(self, number: int, row: int, rng: np.random.Generator | None = None) -> dict:
        """The sample of record `row` of file `number`.

        Args:
            rng: draws the changes of its images, where its file has `jpeg_quality`; None: images as they are.

        Raises:
            RecordError: the record or one of its images can't be used, or (`too_long`) it doesn't fit.
        """
        source = self.sources[number]
        record = self.record(number, row)
        try:
            opened, sample, fate = self._fit(record, source)
        except MediaError as error:
            raise error.in_record(record.source) from None
        tiles = torch.cat([torch.empty(0, 3, self.tile_size, self.tile_size, dtype=torch.uint8), *opened])
        if rng is not None and source.jpeg_quality is not None:
            tiles = degrade(tiles, source.jpeg_quality, rng)
        branches = {"branches": sample.branches} if sample.branches else {}
        num_supervised = int((sample.labels[1:] != IGNORE_INDEX).sum())
        return {
            "input_ids": torch.from_numpy(sample.input_ids),
            "labels": torch.from_numpy(sample.labels),
            "tiles": tiles,
            "num_tiles": len(tiles),
            "source": record.source,
            "fate": FATES[fate],
            "loss_weight": source.loss_weight * max(1, num_supervised) ** REDUCTIONS[self.loss_reduction],
            **branches,
        }

    def _fit(self, record: Record, source: Source) -> tuple[list[torch.Tensor], Encoded, int]:
        """Open images with as many tiles as fit, tokenize, truncate; returns also the fate (see `lengths`)."""
        found = {medium.name: source.folder.resolve(medium.name) for medium in record.media}
        videos = [found[medium.name] for medium in record.media if medium.kind == "video"]
        if videos:
            record = expand_videos(record, [probe_video(path, self.num_frames, self.max_pixels)[0] for path in videos])
        paths = [found[medium.name] for medium in record.media]
        record = normalize_boxes(record, lambda place: image_size(paths[place], self.max_pixels))
        if record.warnings:
            self._log_first(record.warnings)
        pieces = tokenize_pieces(split_pieces(record, source.template, self.tokenizer), self.tokenizer)
        budget, frames = self.budget, [medium.kind == "frame" for medium in record.media]
        share = first_limit(source.tiling.max_tiles, frames.count(False), budget.sharing)
        whole = [1 if frame else share for frame in frames]
        text_tokens = sum(len(piece.ids) for piece in pieces)
        sizes = [
            FRAME if frame else image_size(path, self.max_pixels) for frame, path in zip(frames, paths, strict=True)
        ]
        limits = budget.fit(source.tiling, sizes, text_tokens)
        tilings = [source.tiling.limited(limit) for limit in limits]
        tiles = self._open(record.media, paths, tilings)
        sample = join_pieces(pieces, self.tokenizer, [len(each) for each in tiles], budget.tokens_per_tile)
        if len(sample) <= budget.max_length:
            return tiles, sample, FITS if limits == whole else SHRUNK
        fitted = truncate(sample, budget.max_length) if "truncate_text" in budget.steps else None
        if fitted is None:
            image_tokens = sum(length for _, length in sample.spans)
            raise RecordError(
                "too_long",
                f"{len(sample)} tokens ({image_tokens} of them its images'), max_length is {budget.max_length}",
                "raise max_length or lower max_tiles" if image_tokens else "raise max_length or shorten the record",
                record.source,
            )
        sample, kept = fitted
        return tiles[:kept], sample, TRUNCATED

    def _open(
        self, media: Sequence[Medium], paths: Sequence[MediaSource], tilings: Sequence[DynamicTiling]
    ) -> list[torch.Tensor]:
        tiles: list[torch.Tensor] = []
        frames: dict[str, list] = {}
        for medium, path, tiling in zip(media, paths, tilings, strict=True):
            if medium.kind != "frame":
                tiles.append(open_tiles(path, tiling, self.fast_decoding, self.max_pixels))
                continue
            if not frames.get(medium.name):
                frames[medium.name] = load_frames(path, self.num_frames, self.max_pixels)
            tiles.append(tiling(frames[medium.name].pop(0)))
        return tiles

    def lengths(
        self, number: int, *, num_workers: int | None = None, progress: Callable[[int], None] = lambda done: None
    ) -> LengthIndex:
        """Measured lengths of file `number`, from the cache or measured now (see `lengths`)."""
        if number not in self._lengths:
            task = self.measuring(number)
            self._lengths[number] = measure(task, self.cache_dir, num_workers=num_workers, progress=progress)
        return self._lengths[number]

    def is_measured(self) -> bool:
        """Whether the lengths of every file are in the cache."""
        tasks = map(self.measuring, range(len(self.sources)))
        return all(LengthIndex.open(Path(self.cache_dir) / task.key()) for task in tasks)

    def measuring(self, number: int) -> Measure:
        """What measures the lengths of file `number`."""
        source = self.sources[number]
        return Measure(
            source.index,
            source.folder,
            source.template,
            self.tokenizer,
            self.num_frames,
            self.max_pixels,
            self.parse,
        )

    def layout(self, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `sizes`; every sample that is read from then on is compared with them: packs and groups rely on them.

        Args:
            options: `num_workers` and `progress` of `lengths`.
        """
        self._plan = self.sizes(**options)
        self._plan_folders = [self.lengths(number).directory for number in range(len(self.sources))]
        return self._plan

    def sizes(self, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, tiles (int32) and fate (uint8, see `lengths.FATES`) of every sample, in the order of indices.

        Args:
            options: `num_workers` and `progress` of `lengths`.
        """
        columns = []
        for number, (source, pick) in enumerate(zip(self.sources, self.picks, strict=True)):
            part = self.lengths(number, **options).lay_out(source.tiling, self.budget)
            if source.repeat != 1 or self.rejected[number]:  # else it stays mapped
                part = [column[pick] for column in part]
            if self.rejected[number]:
                gone = np.isin(pick, list(self.rejected[number]))
                part[0][gone], part[1][gone], part[2][gone] = 0, 0, REJECTED
            columns.append(part)
        return tuple(part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*columns, strict=True))

    def usable(self, fates: np.ndarray) -> np.ndarray:
        """Indices of the samples that a plan contains.

        Args:
            fates: from `layout`.

        Raises:
            RecordError: with on_bad_sample='raise', unusable records: how many, and the first of them.
        """
        if self.on_bad_sample == "raise" and len(broken := find_broken(self, fates)):
            raise unusable_error(self, broken)
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
