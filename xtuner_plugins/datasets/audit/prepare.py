"""Conversion of public data sets to this project's jsonl.

Each row of `RECIPES` names the downloaded file, its number of records and who published it, the place of the images,
and the conversion of a record. Records are checked as in training; nothing is guessed or silently dropped.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..cache import write_whole
from ..errors import DataError, RecordError, SettingError
from ..images.media import ImageFolder
from ..records.index import scan
from ..records.records import parse_record

COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)")
COCO_YEARS = ("2017", "2014")
COCO_NONE, COCO_ALL, COCO_FOLDER = 0, 1, 2  # which of a data set's images are COCO's: see `Recipe.coco`
GIVE_UP_AFTER = 100  # records; where none of the first hundred is usable, it is the wrong file
# used in turn, so that the captions of one image answer different prompts
CHINESE_PROMPTS = (
    "请描述这张图片。",
    "请用一句话描述图片的内容。",
    "这张图片里有什么?",
    "请简要说明图中的场景。",
    "图中发生了什么?",
)
ENGLISH_PROMPTS = (
    "Describe this image in detail.",
    "What does the image show? Include any text in it.",
    "Give a detailed description of this image and of the text in it.",
)


@dataclass(frozen=True)
class Recipe:
    """A data set.

    Attributes:
        file: the downloaded file, relative to the data set's folder.
        num_records: its number of records, which is checked; None where nobody publishes it.
        counted_by: who publishes that number.
        images: place of the unpacked images, for `image_folders`.
        convert: (raw record, its index) -> our records.
        coco: COCO_ALL: the images are COCO's, named by number as in 2017. COCO_FOLDER: those below `coco/` are.
    """

    file: str
    num_records: int | None
    counted_by: str
    images: str
    convert: Callable[[dict, int], Iterable[dict]]
    coco: int = COCO_NONE


def as_it_is(raw: dict, number: int) -> list[dict]:
    """Records that are in LLaVA's form: {"id", "image", "conversations": [{"from", "value"}, ...]}."""
    return [raw]


def captions_in_chinese(raw: dict, number: int) -> list[dict]:
    """AI Challenger: {"url": ..., "image_id": "x.jpg", "caption": [five texts]} -> a record for each caption."""
    captions = raw["caption"]
    if not isinstance(captions, list) or len(captions) != 5:
        raise ValueError(f"'caption' is {str(captions)[:40]!r}, not five texts")
    return [
        _talk(raw["image_id"], CHINESE_PROMPTS[place % len(CHINESE_PROMPTS)], caption.strip(), f"{number}-{place}")
        for place, caption in enumerate(captions)
    ]


def long_caption(raw: dict, number: int) -> list[dict]:
    """TextOCR-GPT4o: the name of an image and its description by GPT-4o.

    Its card names the column `caption`. TextOCR-GPT4V, by the same author and with the same file name, has {"filename",
    "caption_image", "caption_text", "caption_condensed"}. The whole caption is preferred, then the condensed one, then
    the two parts.
    """
    keys = ("filename", "file_name", "image", "image_path", "image_id")
    name = next((raw[key] for key in keys if isinstance(raw.get(key), str)), None)
    if name is None:
        raise KeyError(" or ".join(keys))
    name = os.path.basename(name)
    parts = [raw[key] for key in ("caption_image", "caption_text") if raw.get(key)]
    caption = raw.get("caption") or raw.get("caption_condensed") or "\n".join(parts)
    if not caption:
        raise KeyError("caption")
    name = name if os.path.splitext(name)[1] else f"{name}.jpg"  # TextOCR's own ids have no suffix
    return [_talk(name, ENGLISH_PROMPTS[number % len(ENGLISH_PROMPTS)], caption.strip(), str(number))]


def _talk(image: str, question: str, answer: str, name: str) -> dict:
    return {
        "id": name,
        "image": image,
        "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
    }


_COCO = "COCO's train2017/, or train2014/ with --coco 2014"
RECIPES = {
    # The card "LLaVA Visual Instruct Pretrain" says 558K; 558,128 is what its copies and users count.
    "llava-pretrain": Recipe(
        "blip_laion_cc_sbu_558k.json", 558_128, "copies of LLaVA-Pretrain", "images.zip of the data set", as_it_is
    ),
    # The card "LLaVA Visual Instruct CC3M Pretrain 595K" says 595K and describes chat.json; the number is its users'.
    "llava-cc3m-595k": Recipe(
        "chat.json", 595_375, "users of LLaVA-CC3M-Pretrain-595K", "images.zip of the data set", as_it_is
    ),
    # The LLaVA paper says 158K = 58K conversations + 23K descriptions + 77K reasoning. The exact numbers: BAAI's
    # DataOptim card (157,712), and counts of the files of LLaVA-Instruct-150K that users publish (all five).
    "llava-instruct-150k": Recipe(
        "llava_instruct_150k.json", 157_712, "card of DataOptim", _COCO, as_it_is, coco=COCO_ALL
    ),
    "llava-instruct-80k": Recipe(
        "llava_instruct_80k.json", 80_000, "users of LLaVA-Instruct-150K", _COCO, as_it_is, coco=COCO_ALL
    ),
    "conversation-58k": Recipe(
        "conversation_58k.json", 56_681, "users of LLaVA-Instruct-150K", _COCO, as_it_is, coco=COCO_ALL
    ),
    "detail-23k": Recipe("detail_23k.json", 23_240, "users of LLaVA-Instruct-150K", _COCO, as_it_is, coco=COCO_ALL),
    "complex-reasoning-77k": Recipe(
        "complex_reasoning_77k.json", 76_643, "users of LLaVA-Instruct-150K", _COCO, as_it_is, coco=COCO_ALL
    ),
    # 624,610 of them with an image, 40,688 of text alone.
    "llava-mix665k": Recipe(
        "llava_v1_5_mix665k.json",
        665_298,
        "users of LLaVA-Instruct-150K",
        "a folder with coco/train2017/ gqa/images/ ocr_vqa/images/ textvqa/train_images/ vg/VG_100K/ vg/VG_100K_2/",
        as_it_is,
        coco=COCO_FOLDER,
    ),
    # "AI Challenger: A Large-scale Dataset for Going Deeper in Image Understanding": 210,000 + 30,000 + two tests.
    "ai-challenger": Recipe(
        "caption_train_annotations_20170902.json",
        210_000,
        "paper of AI Challenger",
        "caption_train_images_20170902/",
        captions_in_chinese,
    ),
    "ai-challenger-val": Recipe(
        "caption_validation_annotations_20170910.json",
        30_000,
        "paper of AI Challenger",
        "caption_validation_images_20170910/",
        captions_in_chinese,
    ),
    # The card "TextOCR-GPT4o" gives no number, only a range (10K to 100K).
    "textocr-gpt4o": Recipe("train.jsonl", None, "", "TextOCR's own train_images/", long_caption),
    # ms-swift's table of data sets; it leaves out records whose image isn't in images.zip (--image-folder does).
    "sharegpt-4o": Recipe(
        "image_conversations/gpt-4o.jsonl",
        57_289,
        "ms-swift's table of data sets",
        "images.zip of the data set: mnt/petrelfs/wangwenhai/workspace_cef/4o/image/",
        as_it_is,
    ),
}


@dataclass
class Prepared:
    """Summary of a conversion."""

    num_read: int = 0  # records of the downloaded file
    num_written: int = 0  # records of ours
    num_images: int = 0  # different images in them
    complaints: list[str] = field(default_factory=list)  # one per record that was left out
    remark: str = ""  # what is wrong with the file as a whole


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
        source: the downloaded file, or the folder that holds it.
        out: the jsonl to write, whole or not at all.
        coco: '2017' (000000000009.jpg) or '2014' (COCO_train2014_000000000009.jpg), for data sets on COCO.
        image_prefix: prefix of the name of every image, for example `coco/train2017/`.
        image_folder: leave out records whose images aren't there. With coco='2014', an image that isn't in train2014
            is looked for in val2014, since train2017 holds images of both.
        begin, progress: called once with the number of records, and with the number done since the last call.

    Raises:
        SettingError: unknown `name` or `coco`, or the file isn't there or belongs to another data set.
        RecordError: a JSON array that is cut off.
    """
    if name not in RECIPES:
        raise SettingError("name", f"{name!r} is unknown", f"known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if coco not in COCO_YEARS:
        raise SettingError("coco", f"coco={coco!r} is unknown", "COCO's names are those of 2014 or 2017")
    if coco == "2014" and recipe.coco == COCO_NONE:
        raise SettingError("coco", f"{name} has no images of COCO", "leave --coco out")
    folder = None if image_folder is None else ImageFolder(image_folder)
    path = find_source(recipe, source)
    index = scan(path)
    begin(len(index))
    result, images = Prepared(), set()

    def rows() -> Iterator[str]:
        for number in range(len(index)):
            if number == GIVE_UP_AFTER and not result.num_written:
                raise SettingError(
                    "shape",
                    f"{path}: not one of the first {GIVE_UP_AFTER} records is usable; the first: "
                    f"{result.complaints[0]}",
                    f"{name} is made from {recipe.file}, name that file",
                )
            result.num_read += 1
            where = index.source(number)
            try:
                records = _convert(recipe, index.parse(number), number, where)
            except RecordError as error:
                records = []
                result.complaints.append(str(error))
            for record in records:
                try:
                    record = _rename(record, recipe, coco, image_prefix, folder)
                    parse_record(record, where)
                    names = _names(record)
                    if missing := [name for name in names if folder is not None and not _is_there(folder, name)]:
                        raise RecordError(
                            "image_missing",
                            f"{missing[0]!r} isn't in {folder.folder!r}",
                            "unpack the images there, or correct --image-folder, --image-prefix or --coco",
                            where,
                        )
                except RecordError as error:
                    result.complaints.append(str(error))
                    continue
                images.update(names)
                result.num_written += 1
                yield json.dumps(record, ensure_ascii=False) + "\n"
            progress(1)

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(rows())

    write_whole(Path(out), write)
    result.num_images = len(images)
    if recipe.num_records is not None and len(index) != recipe.num_records:
        result.remark = (
            f"{path} has {len(index):,} records, the published {os.path.basename(recipe.file)} has "
            f"{recipe.num_records:,} (says: {recipe.counted_by}): another version, or cut off; fetch it again, "
            "or say --any-count when it is meant to be so"
        )
    return result


def find_source(recipe: Recipe, source: str | os.PathLike) -> Path:
    """The downloaded file.

    Raises:
        SettingError: there is no such file, or the folder doesn't hold it.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for place in (path / recipe.file, path / os.path.basename(recipe.file)):
            if place.is_file():
                return place
        raise SettingError(
            "source", f"folder {str(path)!r} holds no {recipe.file}", "download it, or name the file itself"
        )
    raise SettingError("source", f"{str(path)!r} isn't there", f"name the downloaded {recipe.file}, or its folder")


def _convert(recipe: Recipe, raw: object, number: int, source: str) -> list[dict]:
    try:
        return list(recipe.convert(raw, number))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(
            "shape", f"not a record of {recipe.file} ({problem})", "check that the file is the data set's own", source
        ) from None


def _names(record: object) -> list[str]:
    """The images that a record names."""
    image = record.get("image") if isinstance(record, dict) else None
    return [name for name in (image if isinstance(image, list) else [image]) if isinstance(name, str)]


def _rename(record: object, recipe: Recipe, coco: str, prefix: str, folder: ImageFolder | None) -> object:
    """The record with the names of its images on disk."""
    if not isinstance(record, dict) or not (recipe.coco or prefix):
        return record
    image = record.get("image")

    def rename(name: object) -> object:
        if not isinstance(name, str) or not name:
            return name
        choices = [prefix + choice for choice in _coco_names(name, recipe, coco)]
        found = (choice for choice in choices if folder is not None and _is_there(folder, choice))
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


def _is_there(folder: ImageFolder, name: str) -> bool:
    try:
        return os.path.isfile(folder.resolve(name))
    except DataError:
        return False
