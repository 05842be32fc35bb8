"""The annotation files of a mixture with their settings, and which of their records an epoch uses."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, SettingError
from ..files import masked
from .base import prompt_of, tiling_of
from .images.media import ImageFolder, StoreImages, open_images
from .images.tiles import check_quality
from .images.tiling import DynamicTiling
from .meta_file import list_files
from .records.opening import RecordSource, folder_of, open_records, stem_of
from .text.templates import Template, get_template

if TYPE_CHECKING:
    from ..hub.configuration_internvl_chat import InternVLChatConfig

OWN_SETTINGS = {  # that a file may have: their types
    "name": (str, "a text"),
    "max_tiles": (int, "a whole number"),
    "template": (str, "the name of a template"),
    "loss_weight": (Real, "a positive number"),
    "jpeg_quality": (Sequence, "(lowest, highest) from 1 to 100, such as (75, 100)"),
    "columns": (Mapping, "a dict of names here and names in the records, such as {'messages': 'dialog'}"),
    "storage_options": (Mapping, "a dict of fsspec's options, such as {'endpoint_url': ..., 'anon': True}"),
}


@dataclass(frozen=True)
class Source:
    """One annotation file of the mixture with its settings."""

    name: str
    index: RecordSource
    folder: ImageFolder | StoreImages
    repeat: float
    template: Template
    tiling: DynamicTiling
    loss_weight: float = 1.0
    jpeg_quality: tuple[int, int] | None = None


def open_sources(
    data_paths, image_folders, repeat_times, dataset_settings, config: "InternVLChatConfig", shared: Mapping
) -> list[Source]:
    """Open every file of a mixture; arguments as `MultimodalDataset` has them.

    Args:
        config: of the base.
        shared: settings that hold for every file unless `dataset_settings` says otherwise.

    Raises:
        SettingError: a list of another length, a path that isn't there, an impossible or unknown setting.
    """
    sources, errors = [], []
    for entry in list_files(data_paths, image_folders, repeat_times, dataset_settings):
        try:
            sources.append(_open(*entry, config, shared))
        except DataError as error:
            errors.append(error)
    if errors:  # all files at once, one line per file
        messages = list(dict.fromkeys(map(str, errors)))
        raise errors[0] if len(messages) == 1 else SettingError("files", "\n".join(messages))
    stems = [stem_of(source.index.path) for source in sources]
    return [  # `a/train.jsonl` and `b/train.jsonl` go by their paths in reports and in the ledger
        replace(source, name=source.index.path) if source.name == stem and stems.count(stem) > 1 else source
        for source, stem in zip(sources, stems, strict=True)
    ]


def pick_records(num_records: int, repeat: float, seed: int) -> np.ndarray:
    """Indices of the records that a file contributes to an epoch, int32: whole rounds, then a random part of one.

    The part is rounded to the nearest record; every file contributes at least one.
    """
    whole = int(repeat)
    rest = max(int((repeat - whole) * num_records + 0.5), whole == 0)
    part = np.sort(np.random.default_rng(seed).permutation(num_records)[:rest])
    return np.concatenate([np.tile(np.arange(num_records), whole), part]).astype(np.int32)


def _open(path, folder, repeat, own, config: "InternVLChatConfig", shared: Mapping[str, object]) -> Source:
    where = f"dataset_settings of {masked(os.fspath(path))!r}"
    if not isinstance(own, Mapping | None) or set(own or ()) - set(OWN_SETTINGS):
        remedy = f"give a dict with some of {', '.join(OWN_SETTINGS)}, or None"
        raise SettingError("dataset_settings", f"{where} is {_shown(own)}", remedy)
    own = {name: value for name, value in (own or {}).items() if value is not None}
    settings = {**dict.fromkeys(OWN_SETTINGS), **shared, **own}
    for name, value in settings.items():
        kind, words = OWN_SETTINGS[name]
        if not isinstance(value, kind | None) or isinstance(value, bool):
            said = f"{name}={_shown(value)}" + (f" ({where})" if name in own else "")
            raise SettingError(name, f"{said} can't be used", f"give {words}")
    if not isinstance(folder, str | os.PathLike | None):
        raise SettingError("image_folders", f"image_folders holds {folder!r}", "name folders by their paths, or None")
    columns, options = settings["columns"] or {}, settings["storage_options"]
    if not all(isinstance(name, str) for pair in columns.items() for name in pair):
        raise SettingError("columns", f"columns={columns!r} ({where}) can't be used", "give names of keys")
    return Source(
        name=settings["name"] or stem_of(path),
        index=open_records(path, options, columns),
        folder=open_images(folder, folder_of(path), options),
        repeat=_positive(1.0 if repeat is None else repeat, "repeat_times"),
        template=get_template(*prompt_of(config, settings["template"])),
        tiling=tiling_of(config, settings),
        jpeg_quality=check_quality(settings["jpeg_quality"]),
        loss_weight=_positive(own.get("loss_weight", 1.0), "loss_weight"),
    )


def _shown(value: object) -> str:
    """A setting in a message; what is in `storage_options` may be secret."""
    if isinstance(value, Mapping):
        return repr({key: "..." if key == "storage_options" else each for key, each in value.items()})
    return masked(repr(value))


def _positive(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise SettingError(name, f"{name} holds {value!r}", "give positive numbers")
    return float(value)
