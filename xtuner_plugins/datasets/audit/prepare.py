"""Conversion of public data sets (`published.RECIPES`) to this project's jsonl.

Records are checked as in training, and images are looked for; what can't be trained on is left out with a complaint.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RecordError, SettingError
from ..images.folders import FolderCount, FolderFiles
from ..images.media import ImageFolder
from ..records.parquet import write_image
from ..records.records import IMAGE
from .output import write_lines
from .published import COCO_FOLDER, COCO_NONE, RECIPES, NoPreferenceError, Recipe
from .sources import Part, open_parts

COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)")
COCO_YEARS = ("2017", "2014")
GIVE_UP_AFTER = 100  # records; where none of the first hundred is usable, it is the wrong file


@dataclass
class Prepared:
    """Summary of a conversion."""

    num_read: int = 0  # records of the downloaded file
    num_written: int = 0  # records of ours
    num_text: int = 0  # those of them without an image
    num_images: int = 0  # different images in them
    complaints: list[str] = field(default_factory=list)  # one per record that was left out
    remark: str = ""  # what is wrong with the file as a whole
    folder: FolderCount | None = None  # the image folder beside the names in the file


def prepare(
    name: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    coco: str = "2017",
    image_prefix: str = "",
    image_folder: str | os.PathLike | None = None,
    begin: Callable[[int], None] = lambda total: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Write a data set as jsonl. Records that training would refuse are left out, with a complaint.

    Args:
        name: a row of `RECIPES`.
        source: the downloaded file, or the folder that holds it or, of several, all of them.
        out: the jsonl to write, whole or not at all.
        coco: '2017' (000000000009.jpg) or '2014' (COCO_train2014_000000000009.jpg), for data sets on COCO.
        image_prefix: prefix of the name of every image, for example `coco/train2017/`.
        image_folder: leave out records whose images aren't there, and count missing and superfluous files. With
            coco='2014', an image that isn't in train2014 is looked for in val2014, since train2017 holds images of
            both. Of a data set whose file carries its images, the folder that they are written to.
        begin, progress: called once with the number of records, and with the number done since the last call.

    Raises:
        SettingError: unknown `name` or `coco`, an option that the data set has no use for, or the file isn't there or
            belongs to another data set.
        RecordError: a JSON array that is cut off.
    """
    recipe = _check_options(name, coco, image_prefix, image_folder)
    parts, problems = open_parts(recipe, source)
    if recipe.embedded:
        Path(image_folder).mkdir(parents=True, exist_ok=True)
    folder = None if image_folder is None else ImageFolder(image_folder)
    files = None if folder is None or recipe.embedded else FolderFiles(folder)
    begin(sum(map(len, parts)))
    result, named = Prepared(complaints=problems), set()

    def rows() -> Iterator[str]:
        written: set[str] = set()
        for number, (part, where, raw) in enumerate((each, *row) for each in parts for row in each.rows()):
            if number == GIVE_UP_AFTER and not result.num_written:
                raise SettingError(
                    "shape",
                    f"{part.path}: not one of the first {GIVE_UP_AFTER} records is usable; the first: "
                    f"{result.complaints[0]}",
                    f"{name} is made from {recipe.file}, name that file",
                )
            result.num_read += 1
            try:
                records = _convert(recipe, raw(), number, where, folder)
            except RecordError as error:
                records = []
                result.complaints.append(str(error))
            for record in records:
                try:
                    record = _rename(record, recipe, coco, image_prefix + part.prefix, files)
                    names = _names(record)
                    named.update(names)
                    _check(record, recipe, names, files, where)
                except RecordError as error:
                    result.complaints.append(str(error))
                    continue
                written.update(names)
                result.num_written += 1
                result.num_text += not names
                yield json.dumps(record, ensure_ascii=False) + "\n"
            progress(1)
        result.num_images = len(written)

    write_lines(Path(out), rows())
    if folder is not None:
        result.folder = (files or FolderFiles(folder)).compare(named)
    result.remark = _remark(recipe, source, parts)
    return result


def _check_options(name: str, coco: str, image_prefix: str, image_folder: str | os.PathLike | None) -> Recipe:
    """The recipe of that name, once all options make sense for it."""
    if name not in RECIPES:
        raise SettingError("name", f"{name!r} is unknown", f"known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if coco not in COCO_YEARS:
        raise SettingError("coco", f"coco={coco!r} is unknown", "COCO's names are those of 2014 or 2017")
    if coco == "2014" and recipe.coco == COCO_NONE:
        raise SettingError("coco", f"{name} has no images of COCO", "leave --coco out")
    if recipe.embedded and image_folder is None:
        raise SettingError(
            "image_folder", f"{name} carries its images in {recipe.file}", "name a folder for them with --image-folder"
        )
    if recipe.embedded and image_prefix:
        raise SettingError("image_prefix", f"the images of {name} get names of their own", "leave --image-prefix out")
    return recipe


def _check(record: object, recipe: Recipe, names: list[str], files: FolderFiles | None, where: str) -> None:
    """Raises `RecordError` for a record that training would refuse, or whose images aren't there."""
    recipe.parse(record, where)
    if missing := [name for name in names if files is not None and name not in files]:
        raise RecordError(
            "image_missing",
            f"{missing[0]!r} isn't in {files.folder.folder!r}",
            "unpack the images there, or correct --image-folder, --image-prefix or --coco",
            where,
        )


def _remark(recipe: Recipe, source: str | os.PathLike, parts: list[Part]) -> str:
    """What is wrong with the files as a whole; '' for nothing."""
    num_records, remedy = sum(map(len, parts)), "another version, or cut off; fetch it again, "
    remedy += "or say --any-count when it is meant to be so"
    if recipe.num_records is not None and num_records != recipe.num_records:
        path = parts[0].path if len(parts) == 1 else source
        return (
            f"{path} has {num_records:,} records, the published {os.path.basename(recipe.file)} has "
            f"{recipe.num_records:,} (says: {recipe.counted_by}): {remedy}"
        )
    others = [part for part in parts if part.length is not None and part.length != len(part.index)]
    if not others:
        return ""
    first, more = others[0], f" (and so {len(others) - 1} more files)" if len(others) > 1 else ""
    return (
        f"{first.path} has {len(first.index):,} records, {os.path.basename(recipe.file)} says {first.length:,}{more}: "
        f"{remedy}"
    )


def _convert(recipe: Recipe, raw: object, number: int, source: str, folder: ImageFolder | None) -> list[dict]:
    try:
        if recipe.embedded:
            raw = raw | {"image": [write_image(data, Path(folder.folder), source) for data in _bytes(raw, recipe)]}
        return list(recipe.convert(raw, number))
    except NoPreferenceError as error:
        raise RecordError("no_preference", str(error), "", source) from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        problem = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(
            "shape", f"not a record of {recipe.file} ({problem})", "check that the file is the data set's own", source
        ) from None


def _bytes(raw: dict, recipe: Recipe) -> list[bytes]:
    """The images of a row, each the bytes or {"bytes", "path"}; none where turns have no `<image>` that calls them."""
    images = raw[recipe.embedded]
    if images is None or ("conversations" in raw and IMAGE not in str(raw["conversations"])):
        return []
    images = images if isinstance(images, list) else [images]
    return [image["bytes"] if isinstance(image, dict) else image for image in images]


def _names(record: object) -> list[str]:
    """The images that a record names."""
    image = record.get("image") if isinstance(record, dict) else None
    return [name for name in (image if isinstance(image, list) else [image]) if isinstance(name, str)]


def _rename(record: object, recipe: Recipe, coco: str, prefix: str, files: FolderFiles | None) -> object:
    """The record with the names of its images on disk."""
    if not isinstance(record, dict) or not (recipe.coco or prefix):
        return record
    image = record.get("image")

    def rename(name: object) -> object:
        if not isinstance(name, str) or not name:
            return name
        choices = [prefix + choice for choice in _coco_names(name, recipe, coco)]
        found = (choice for choice in choices if files is not None and choice in files)
        return next(found, choices[0])

    if image is None:
        return record
    return record | {"image": [rename(name) for name in image] if isinstance(image, list) else rename(image)}


def _coco_names(name: str, recipe: Recipe, coco: str) -> list[str]:
    """Possible names of an image in a release of COCO, the most likely first."""
    head, tail = os.path.split(name)
    match = COCO_NUMBER.fullmatch(tail)
    if not match or recipe.coco == COCO_NONE or (recipe.coco == COCO_FOLDER and not name.startswith("coco/")):
        return [name]
    if coco == "2017":
        return [os.path.join(re.sub("(train|val)2014", "train2017", head), match[1])]
    return [
        os.path.join(re.sub("(train|val)201[47]", f"{part}2014", head), f"COCO_{part}2014_{match[1]}")
        for part in ("train", "val")
    ]
