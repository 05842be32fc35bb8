"""From the files that people download to this project's jsonl.

Each row of the table says which file a data set comes as, how many records it has, and how one of its records becomes
ours. Records are checked as training will check them; nothing is guessed and nothing is dropped in silence.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cache import write_whole
from .errors import RecordError, SettingError
from .index import scan
from .records import parse_record

COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)$")
COCO_NAMES = {"2017": "{}", "2014": "COCO_train2014_{}"}
# asked about a picture in turn, so that captions of one picture answer different words
CHINESE_PROMPTS = (
    "请描述这张图片。",
    "请用一句话描述图片的内容。",
    "这张图片里有什么?",
    "请简要说明图中的场景。",
    "图中发生了什么?",
)
ENGLISH_PROMPTS = (
    "Describe this picture in detail.",
    "What does the picture show? Include any text in it.",
    "Give a detailed description of this picture and of the text in it.",
)


@dataclass(frozen=True)
class Recipe:
    """A data set.

    Attributes:
        file: what it is downloaded as.
        num_records: how many records that file has; None where releases differ.
        convert: a raw record and its number -> our records.
        coco: its pictures are COCO's, named as in 2017.
    """

    file: str
    num_records: int | None
    convert: Callable[[dict, int], Iterable[dict]]
    coco: bool = False


def as_it_is(raw: dict, number: int) -> list[dict]:
    """LLaVA records already."""
    return [raw]


def captions_in_chinese(raw: dict, number: int) -> list[dict]:
    """AI Challenger: {"image_id": "x.jpg", "caption": [five]} -> a record for each caption."""
    return [
        _talk(raw["image_id"], CHINESE_PROMPTS[place % len(CHINESE_PROMPTS)], caption.strip(), f"{number}-{place}")
        for place, caption in enumerate(raw["caption"])
    ]


def long_caption(raw: dict, number: int) -> list[dict]:
    """TextOCR-GPT4o: a picture's name and one caption."""
    name = next(raw[key] for key in ("image", "filename", "image_path", "file_name") if key in raw)
    return [
        _talk(
            os.path.basename(name), ENGLISH_PROMPTS[number % len(ENGLISH_PROMPTS)], raw["caption"].strip(), str(number)
        )
    ]


def _talk(image: str, question: str, answer: str, name: str) -> dict:
    return {
        "id": name,
        "image": image,
        "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
    }


RECIPES = {
    "llava-pretrain": Recipe("blip_laion_cc_sbu_558k.json", 558_128, as_it_is),
    "llava-cc3m-595k": Recipe("chat.json", 595_375, as_it_is),
    "llava-instruct-150k": Recipe("llava_instruct_150k.json", 157_712, as_it_is, coco=True),
    "llava-instruct-80k": Recipe("llava_instruct_80k.json", 80_000, as_it_is, coco=True),
    "detail-23k": Recipe("detail_23k.json", 23_240, as_it_is, coco=True),
    "complex-reasoning-77k": Recipe("complex_reasoning_77k.json", 76_643, as_it_is, coco=True),
    "llava-mix665k": Recipe("llava_v1_5_mix665k.json", 665_298, as_it_is),
    "ai-challenger": Recipe("caption_train_annotations_20170902.json", 210_000, captions_in_chinese),
    "textocr-gpt4o": Recipe("train.jsonl", None, long_caption),
    "sharegpt-4o": Recipe("gpt-4o.jsonl", None, as_it_is),
}


@dataclass
class Prepared:
    """What was written."""

    num_read: int = 0
    num_written: int = 0
    complaints: list[str] | None = None
    remark: str = ""


def prepare(
    name: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    coco: str = "2017",
    image_prefix: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Write a data set as jsonl. Records that training would refuse are left out and complained about.

    Args:
        name: a row of `RECIPES`.
        source: the downloaded file, or the folder that holds it.
        out: the jsonl to write; it appears whole or not at all.
        coco: '2017' (000000000009.jpg) or '2014' (COCO_train2014_000000000009.jpg), for data sets on COCO.
        image_prefix: put in front of every picture's name, for example `coco/train2017/`.

    Raises:
        SettingError: an unknown name or naming, or the file isn't there.
    """
    if name not in RECIPES:
        raise SettingError("name", f"{name!r} is unknown", f"known are {', '.join(RECIPES)}")
    if coco not in COCO_NAMES:
        raise SettingError("coco", f"coco={coco!r} is unknown", "COCO's names are those of 2014 or 2017")
    recipe = RECIPES[name]
    path = Path(source) / recipe.file if os.path.isdir(source) else Path(source)
    index = scan(path)
    result = Prepared(complaints=[])

    def rows() -> Iterator[str]:
        for number in range(len(index)):
            result.num_read += 1
            progress(1)
            try:
                for record in _convert(recipe, index.parse(number), number, index.source(number)):
                    record = _rename(record, recipe, coco, image_prefix)
                    parse_record(record, index.source(number))
                    result.num_written += 1
                    yield json.dumps(record, ensure_ascii=False) + "\n"
            except RecordError as error:
                result.complaints.append(str(error))

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(rows())

    write_whole(Path(out), write)
    if recipe.num_records is not None and len(index) != recipe.num_records:
        result.remark = (
            f"{path} has {len(index):,} records, the published {recipe.file} has "
            f"{recipe.num_records:,}: another version, or cut off"
        )
    return result


def _convert(recipe: Recipe, raw: object, number: int, source: str) -> Iterable[dict]:
    try:
        return recipe.convert(raw, number)
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise RecordError(
            "shape",
            f"not a record of {recipe.file} ({type(error).__name__}: {error})",
            "check that the file is the data set's own",
            source,
        ) from None


def _rename(record: object, recipe: Recipe, coco: str, prefix: str) -> object:
    """The record with its pictures' names as they lie on disk."""
    if not isinstance(record, dict) or record.get("image") is None or not (recipe.coco or prefix):
        return record
    names = record["image"] if isinstance(record["image"], list) else [record["image"]]
    renamed = []
    for name in names:
        match = COCO_NUMBER.search(name) if recipe.coco and isinstance(name, str) else None
        renamed.append(prefix + COCO_NAMES[coco].format(match[1]) if match else f"{prefix}{name}")
    return record | {"image": renamed if isinstance(record["image"], list) else renamed[0]}
