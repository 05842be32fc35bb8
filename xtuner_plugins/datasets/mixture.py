"""The annotation files of a mixture, and which of their records an epoch uses."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from ..preprocessing import SETTINGS, own_settings
from .base import BaseFacts
from .errors import DataError, SettingError
from .images.media import ImageFolder
from .plan.budget import TileBudget
from .records.index import OffsetIndex, open_index
from .text.templates import Template, get_template

OWN_SETTINGS = ("name", "min_tiles", "max_tiles", "use_thumbnail", "template", "loss_weight")
TYPES = {  # of the settings that a file may have for itself
    "name": (str, "a text"),
    "min_tiles": (int, "a whole number"),
    "max_tiles": (int, "a whole number"),
    "use_thumbnail": (bool, "True or False"),
    "template": (str, "the name of a template"),
    "loss_weight": (Real, "a positive number"),
}


@dataclass(frozen=True)
class Source:
    """One annotation file of the mixture with everything that is decided for it."""

    name: str
    index: OffsetIndex
    folder: ImageFolder
    repeat: float
    template: Template
    budget: TileBudget
    loss_weight: float = 1.0


@dataclass(frozen=True)
class MixtureSettings:
    """Settings that hold for every file unless `dataset_settings` says otherwise."""

    base: str
    min_tiles: int | None
    max_tiles: int | None
    use_thumbnail: bool | None
    template: str | None
    max_length: int
    tile_sharing: str
    too_long: tuple[str, ...]
    cache_dir: str


def open_sources(data_paths, image_folders, repeat_times, dataset_settings, settings: MixtureSettings) -> list[Source]:
    """Open every file of a mixture.

    Raises:
        SettingError: a list of another length, a path that isn't there, an impossible or unknown setting.
    """
    paths = [data_paths] if isinstance(data_paths, (str, os.PathLike)) else list(data_paths or [])
    if not paths:
        raise SettingError("data_paths", "data_paths is empty", "give at least one annotation file")
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise SettingError("data_paths", f"data_paths holds {path!r}", "name annotation files by their paths")
    columns = [
        _one_each(value, len(paths), name)
        for name, value in (
            ("image_folders", image_folders),
            ("repeat_times", repeat_times),
            ("dataset_settings", dataset_settings),
        )
    ]
    sources, errors = [], []
    for path, *row in zip(paths, *columns, strict=True):
        try:
            sources.append(_open(path, *row, settings))
        except DataError as error:
            errors.append(error)
    if errors:
        raise_together(errors)
    return _tell_apart(sources)


def check_whole(name: str, value: object, low: int) -> int:
    """A setting that must be a whole number from `low` on.

    Raises:
        SettingError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise SettingError(name, f"{name}={value!r} can't be used", f"give a whole number, {low} or more")
    return int(value)


def check_types(settings: Mapping, where: str = "") -> None:
    """Raise for a setting of another type than `TYPES` says; None stands for the default.

    Raises:
        SettingError: which, and what it should be.
    """
    for name, value in settings.items():
        kind, words = TYPES[name]
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise SettingError(name, f"{name}={value!r}{where} can't be used", f"give {words}")


def _tell_apart(sources: list[Source]) -> list[Source]:
    """Files of one name (`a/train.jsonl`, `b/train.jsonl`) go by their paths in reports and in the ledger."""
    stems = [Path(source.index.path).stem for source in sources]
    return [
        replace(source, name=source.index.path) if source.name == stem and stems.count(stem) > 1 else source
        for source, stem in zip(sources, stems, strict=True)
    ]


def raise_together(errors: Sequence[DataError]) -> None:
    """Raise what is wrong with several files at once, a line for each.

    Raises:
        DataError: when there is one.
        SettingError: when there are several different ones.
    """
    messages = list(dict.fromkeys(map(str, errors)))
    if len(messages) > 1:
        raise SettingError("files", "\n".join(messages))
    if messages:
        raise errors[0]


def pick_records(num_records: int, repeat: float, seed: int) -> np.ndarray:
    """Numbers of the records that a file contributes to an epoch, int32: whole rounds, then a random part of one.

    A part is rounded to the nearest record, and a file always contributes at least one.
    """
    whole = int(repeat)
    rest = int((repeat - whole) * num_records + 0.5)
    if whole == 0 and rest == 0:
        rest = 1
    rounds = np.tile(np.arange(num_records, dtype=np.int32), whole)
    part = np.sort(np.random.default_rng(seed).permutation(num_records)[:rest]).astype(np.int32)
    return np.concatenate([rounds, part])


def _one_each(value, number: int, name: str) -> list:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * number
    if len(values) != number:
        raise SettingError(name, f"{name} has {len(values)} entries for {number} data_paths", "give one for each")
    return values


def _open(path, folder, repeat, own, settings: MixtureSettings) -> Source:
    if not (own is None or isinstance(own, Mapping)) or set(own or ()) - set(OWN_SETTINGS):
        raise SettingError(
            "dataset_settings",
            f"dataset_settings of {os.fspath(path)!r} is {own!r}",
            f"give a dict with some of {', '.join(OWN_SETTINGS)}, or None",
        )
    own = dict(own or {})
    check_types(own, f" (dataset_settings of {os.fspath(path)!r})")
    if not (folder is None or isinstance(folder, (str, os.PathLike))):
        raise SettingError("image_folders", f"image_folders holds {folder!r}", "name folders by their paths, or None")
    repeat = _positive(1.0 if repeat is None else repeat, "repeat_times")
    weight = _positive(1.0 if own.get("loss_weight") is None else own["loss_weight"], "loss_weight")
    shared = {key: getattr(settings, key) for key in SETTINGS}
    facts = BaseFacts.read(settings.base, **own_settings(own, shared))
    budget = TileBudget(
        facts.tiling, facts.tokens_per_tile, settings.max_length, settings.tile_sharing, settings.too_long
    )
    return Source(
        own.get("name") or Path(path).stem,
        open_index(path, settings.cache_dir),
        ImageFolder(folder, Path(path).parent),
        repeat,
        get_template(facts.template),
        budget,
        weight,
    )


def _positive(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < 1e6:
        raise SettingError(name, f"{name} holds {value!r}", "give positive numbers")
    return float(value)
