"""Public data sets whose files aren't read as they are: what a record of each becomes, and the images inside them.

All others (LLaVA, ShareGPT-4o, MMPR, RLAIF-V, ...) go into `data_paths` as downloaded. What training would refuse is
left out with a complaint.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from ..datasets.images.media import Blob
from ..datasets.records.opening import open_records
from ..datasets.records.pairs import parse_pair
from ..datasets.records.records import IMAGE, parse_record, read_name
from ..datasets.records.tables import write_image
from ..errors import RecordError, SettingError
from ..files import keep_inputs, write_whole

# Used in turn, so that the captions of one image answer different prompts
CHINESE_PROMPTS = ("请描述这张图片。", "请用一句话描述图片的内容。", "这张图片里有什么?")
ENGLISH_PROMPTS = ("Describe this image in detail.", "What does the image show? Include any text in it.")
BASIC = ("image_map.json", "captions.json")  # files of Basic-Vision-Language-Model
GIVE_UP_AFTER = 100  # records; where none of the first hundred is usable, it is the wrong file


def ai_challenger(raw: dict, number: int) -> Iterator[dict]:
    """AI Challenger: {"image_id": "x.jpg", "caption": [texts]} -> a record for each caption."""
    if not isinstance(raw["caption"], list):
        raise ValueError(f"'caption' is {str(raw['caption'])[:40]!r}, not a list of texts")
    for place, caption in enumerate(raw["caption"]):
        yield _talk(raw["image_id"], CHINESE_PROMPTS[place % len(CHINESE_PROMPTS)], caption, f"{number}-{place}")


def text_ocr(raw: dict, number: int) -> Iterator[dict]:
    """TextOCR-GPT4o and GPT4V: the name of an image and its description, whole or in parts."""
    name = Path(raw.get("filename") or raw["image_id"])
    parts = "\n".join(raw[key] for key in ("caption_image", "caption_text") if raw.get(key))
    caption = raw.get("caption") or raw.get("caption_condensed") or parts
    name = name.name if name.suffix else f"{name.name}.jpg"  # TextOCR's own ids have no suffix
    yield _talk(name, ENGLISH_PROMPTS[number % len(ENGLISH_PROMPTS)], caption, str(number))


def minimind(raw: dict, number: int) -> Iterator[dict]:
    """MiniMind-V: turns of role and content, perhaps as JSON text; names of images in one text, or their bytes.

    Its rows of text alone carry a small black image that no `<image>` calls; it is left out, as its own code does.
    """
    turns = json.loads(raw["conversations"]) if isinstance(raw["conversations"], str) else raw["conversations"]
    if any(turn.get(key) for turn in turns for key in ("tools", "tool_calls", "functions")):
        raise ValueError("its turns call tools, which no template here writes")
    names = raw.get("image_bytes", raw.get("image"))
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    record = {"id": str(number), "messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]}
    yield record | ({"image": names} if any(IMAGE in turn["content"] for turn in turns) else {})


def rlhf_v(raw: dict, number: int) -> Iterator[dict]:
    """RLHF-V: question and answers stand in `text`, as JSON."""
    pair = json.loads(raw["text"]) if isinstance(raw["text"], str) else raw["text"]
    yield {"id": str(number), "image": raw["image"]} | {key: pair[key] for key in ("question", "chosen", "rejected")}


def basic_captions(raw: dict, number: int) -> Iterator[dict]:
    """Basic-Vision-Language-Model: {"image_file", "q", "a"} -> a record for each answer; `<|extra_0|>` is the image."""
    question = raw["q"].replace("<|extra_0|>", IMAGE).strip()
    question = question.replace(IMAGE, "", 1).strip() if question.startswith(IMAGE) else question
    for place, answer in enumerate(raw["a"] if isinstance(raw["a"], list) else [raw["a"]]):
        yield _talk(raw["image_file"], question, answer, f"{number}-{place}")


def _talk(image: str, question: str, answer: str, name: str) -> dict:
    turns = [{"from": "human", "value": f"{IMAGE}\n{question}"}, {"from": "gpt", "value": answer.strip()}]
    return {"id": name, "image": image, "conversations": turns}


class Recipe(NamedTuple):
    """A data set."""

    convert: Callable[[dict, int], Iterable[dict]]  # (raw record, its index) -> our records
    files: str  # what to name as the source
    images: str  # where its images are
    is_pair: bool = False


_IN_FILE = "in the file; written to --image-folder"
RECIPES = {
    "ai-challenger": Recipe(ai_challenger, "caption_train_annotations_20170902.json", "caption_train_images_20170902/"),
    "textocr-gpt4o": Recipe(text_ocr, "train.jsonl", "TextOCR's own train_images/"),
    "minimind-v": Recipe(minimind, "pretrain_i2t.parquet, sft_i2t.parquet, or *_vlm_data.jsonl of 2025", _IN_FILE),
    "rlhf-v": Recipe(rlhf_v, "RLHF-V-Dataset.parquet", _IN_FILE, is_pair=True),
    "basic-vlm": Recipe(basic_captions, "the folder with image_map.json and captions.json", "as image_map.json says"),
}


@dataclass
class Prepared:
    """Summary of a conversion; `complaints` has one line per record that was left out."""

    num_read: int = 0
    num_written: int = 0
    complaints: list[str] = field(default_factory=list)


def prepare(
    name: str, source: str | os.PathLike, out: str | os.PathLike, image_folder: str | os.PathLike | None = None
) -> Prepared:
    """Write a data set as jsonl, whole or not at all. Records that training would refuse are left out.

    Args:
        name: a row of `RECIPES`.
        source: the downloaded file, or a pattern of several.
        out: the jsonl to write.
        image_folder: records whose images aren't in it are left out; images inside the file are written there.

    Raises:
        SettingError: an unknown name, a missing folder, an `out` that is an input, or none of the first records fits.
        RecordError: the file can't be read.
    """
    if name not in RECIPES:
        raise SettingError("name", f"{name!r} is unknown", f"known are {', '.join(RECIPES)}")
    recipe, result = RECIPES[name], Prepared()
    parse = parse_pair if recipe.is_pair else parse_record

    def require_some() -> None:
        if not result.num_written:
            first = result.complaints[0] if result.complaints else "there is none"
            problem = f"not one of the first {result.num_read} records is usable; the first: {first}"
            raise SettingError("source", problem, f"name {recipe.files}")

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8") as file:
            for number, (place, read) in enumerate(_read_basic(source) if name == "basic-vlm" else _read(source)):
                if number == GIVE_UP_AFTER:
                    require_some()
                result.num_read += 1
                try:
                    for record in _convert(recipe, read, number, place):
                        record = _with_files(record, image_folder, place)
                        parse(record, place)
                        result.num_written += 1
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
                except RecordError as error:
                    result.complaints.append(str(error))
        require_some()

    keep_inputs(out, [source, *glob(os.fspath(source)), *(Path(source, part) for part in BASIC)])
    write_whole(Path(out), write)
    return result


def _convert(recipe: Recipe, read: Callable[[], Any], number: int, place: str) -> list[dict]:
    try:
        return list(recipe.convert(read(), number))
    except RecordError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"not a record of this data set ({f'no {error}' if isinstance(error, KeyError) else error})"
        raise RecordError("shape", problem, f"check that it is of {recipe.files}", place) from None


def _read(source: str | os.PathLike) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(`file:line`, what reads the record) of each."""
    paths = [source] if os.path.isfile(source) else sorted(glob(os.fspath(source)))
    for index in (open_records(path) for path in paths or [source]):
        for row in range(len(index)):
            yield index.source(row), lambda index=index, row=row: index.parse(row)


def _read_basic(folder: str | os.PathLike) -> Iterator[tuple[str, Callable[[], Any]]]:
    """image_map.json, {name: {"image_file", "ID"}}, joined with captions.json, {ID: {"q", "a"}}."""
    paths = [Path(folder) / name for name in BASIC]
    try:
        images, captions = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    except (OSError, ValueError) as error:
        problem = f"{' or '.join(map(str, paths))} can't be read ({error})"
        raise SettingError("source", problem, "name the folder that holds both") from None
    for name, entry in images.items():
        yield f"{paths[0]} {name!r}", lambda entry=entry: entry | captions[str(entry["ID"])]


def _with_files(record: dict, folder: str | os.PathLike | None, place: str) -> dict:
    """The record with its images as names of files: bytes are written, names are looked for."""
    images, names = record.get("image") or [], []
    for image in images if isinstance(images, list) else [images]:
        name = read_name(image, "an image", place)
        if isinstance(name, Blob):
            if folder is None:
                raise SettingError("image_folder", "the file holds its images", "name a folder with --image-folder")
            name = write_image(name.data, Path(folder), place)
        elif folder is not None and not (Path(folder) / name).is_file():
            raise RecordError("image_missing", f"{name!r} isn't in {os.fspath(folder)!r}", "unpack it there", place)
        names.append(name)
    return record | {"image": names[0] if len(names) == 1 else names} if names else record
