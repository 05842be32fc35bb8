"""The public data sets that `prepare` knows: their files, their counts, and what a record of each becomes.

Each row of `RECIPES` names the downloaded file, its number of records and who published it, the place of the images,
and the conversion of a record. Nothing is guessed or silently dropped.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..records.pairs import parse_pair
from ..records.records import IMAGE, Record, parse_record

COCO_NONE, COCO_ALL, COCO_FOLDER = 0, 1, 2  # which of a data set's images are COCO's: see `Recipe.coco`

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

ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")  # that VLFeedback rates


@dataclass(frozen=True)
class Recipe:
    """A data set.

    Attributes:
        file: the downloaded file, relative to the data set's folder; with `*`, all such files in the order of their
            names.
        num_records: its number of records, which is checked; None where nobody publishes it.
        counted_by: who publishes that number.
        images: place of the unpacked images, for `image_folders`.
        convert: (raw record, its index) -> our records.
        coco: COCO_ALL: the images are COCO's, named by number as in 2017. COCO_FOLDER: those below `coco/` are.
        embedded: the column of a Parquet file that holds the bytes of a row's image or images; '' where images are
            files.
        columns: of a Parquet file, what `convert` reads beside the image.
        has_meta: the file is a meta.json of InternVL, which names the annotation files (`sources.open_parts`).
        parse: what checks our records: `parse_record`, or `parse_pair` of preference pairs.
        rule: how records are made or chosen, where that isn't obvious.
    """

    file: str
    num_records: int | None
    counted_by: str
    images: str
    convert: Callable[[dict, int], Iterable[dict]]
    coco: int = COCO_NONE
    embedded: str = ""
    columns: tuple[str, ...] = ("conversations",)
    has_meta: bool = False
    parse: Callable[[object, str], Record] = parse_record
    rule: str = ""


class NoPreferenceError(ValueError):
    """A row of the right form that prefers no answer."""


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


def minimind_v(raw: dict, number: int) -> list[dict]:
    """MiniMind-V: {"conversations": [{"role", "content"}, ...], "image": "a.jpg, b.jpg"}, turns perhaps as JSON text.

    Its rows of text alone carry a small black image that no `<image>` calls; its own code gives it no place, and here
    it is left out. Of a turn only role and content are kept.
    """
    turns = raw["conversations"]
    turns = json.loads(turns) if isinstance(turns, str) else turns
    if any(turn.get(key) for turn in turns for key in ("tools", "tool_calls", "functions")):
        raise ValueError("its turns call tools, which no template here writes")
    record = {"id": str(number), "messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]}
    if not any(IMAGE in turn["content"] for turn in turns):
        return [record]
    names = raw["image"]
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    return [record | {"image": names[0] if len(names) == 1 else names}]


def mmpr(raw: dict, number: int) -> list[dict]:
    """MMPR: {"image": name or names, "question", "chosen", "rejected"}; without placeholders, images come first."""
    names = raw.get("image") or []
    names = [names] if isinstance(names, str) else names
    question = raw["question"] if IMAGE in raw["question"] else f"{IMAGE}\n" * len(names) + raw["question"]
    return [_pair(number, names, question, raw["chosen"], raw["rejected"])]


def rlaif_v(raw: dict, number: int) -> list[dict]:
    """RLAIF-V: a row for each pair; `image` holds the names of the files written from its column."""
    return [_pair(number, raw["image"], raw["question"], raw["chosen"], raw["rejected"])]


def rlhf_v(raw: dict, number: int) -> list[dict]:
    """RLHF-V: question and answers stand in `text`, as JSON."""
    pair = json.loads(raw["text"]) if isinstance(raw["text"], str) else raw["text"]
    return [_pair(number, raw["image"], pair["question"], pair["chosen"], pair["rejected"])]


def vlfeedback(raw: dict, number: int) -> list[dict]:
    """VLFeedback: a prompt with rated answers of several models; see `_RATED` for the pair that is made of them.

    Its own loader names an image after the record's `id`. `completions` is a list, or one object of lists: the form
    in which `datasets` writes a sequence of objects to Parquet.
    """
    names = raw["image"] if "image" in raw else [os.path.basename(raw.get("img_path") or f"{raw['id']}.jpg")]
    answers = raw["completions"]
    if isinstance(answers, dict):
        answers = [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]
    rated = [(rating, answer["response"]) for answer in answers if (rating := _mean_rating(answer)) is not None]
    if len(rated) < 2:
        raise NoPreferenceError(f"{len(rated)} of its {len(answers)} answers rated, a pair takes two")
    best, worst = max(rated, key=lambda pair: pair[0]), min(rated, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        raise NoPreferenceError(f"its {len(rated)} rated answers all have a mean rating of {best[0]:g}")
    return [_pair(number, names, raw["prompt"], best[1], worst[1])]


def _mean_rating(answer: dict) -> float | None:
    """Over the aspects that are rated; None where none is."""
    ratings = [str(answer["annotations"][aspect]["Rating"]).strip() for aspect in ASPECTS]
    numbers = [float(rating) for rating in ratings if rating != "N/A"]
    return sum(numbers) / len(numbers) if numbers else None


def _pair(number: int, names: list[str], question: str, chosen: str, rejected: str) -> dict:
    image = {"image": names[0] if len(names) == 1 else names} if names else {}
    return {"id": str(number), **image, "question": question, "chosen": chosen, "rejected": rejected}


def _talk(image: str, question: str, answer: str, name: str) -> dict:
    return {
        "id": name,
        "image": image,
        "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
    }


_MMPR = "images.zip of the data set, joined of its parts: images/"
_IN_FILE = "in the file; written to --image-folder"
_META = "as meta.json says: with repeat_time 0.5 a random half of a file is taken, with 2 all of it twice"
_RATED = (
    f"the best answer against the worst, by mean rating ({', '.join(ASPECTS)}; N/A is left out of the mean, of several "
    "best or worst the first is taken); rows without two rated answers, or with all ratings equal, are left out"
)
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
    # LinkSoul's translations of the LLaVA files above, in the same form. The repository's viewer counts 1.82M rows in
    # all its files, which fits translations without loss; for chat-translated.json alone no count is published.
    "chinese-llava-pretrain": Recipe(
        "LLaVA-CC3M-Pretrain-595K/chat-translated.json", None, "", "images.zip of LLaVA-CC3M-Pretrain-595K", as_it_is
    ),
    "chinese-llava-instruct-150k": Recipe(
        "LLaVA-Instruct-150K/translated/llava_instruct_150k.json",
        157_712,
        "users of Chinese-LLaVA-Vision-Instructions",
        _COCO,
        as_it_is,
        coco=COCO_ALL,
    ),
    "chinese-llava-instruct-80k": Recipe(
        "LLaVA-Instruct-150K/translated/llava_instruct_80k.json",
        80_000,
        "users of Chinese-LLaVA-Vision-Instructions",
        _COCO,
        as_it_is,
        coco=COCO_ALL,
    ),
    # MiniMind-V's README of 2025-02 shows these records; it says 595K, 300K and 13.6K, and no exact number.
    "minimind-v-pretrain-jsonl": Recipe(
        "pretrain_vlm_data.jsonl", None, "", "pretrain_images.zip of the data set", minimind_v
    ),
    "minimind-v-sft-jsonl": Recipe("sft_vlm_data.jsonl", None, "", "sft_images.zip of the data set", minimind_v),
    "minimind-v-sft-multi-jsonl": Recipe(
        "sft_vlm_data_multi.jsonl", None, "", "the images.zip beside it in the data set", minimind_v
    ),
    # Since 2025-12 one Parquet file with the images in it. Its README says about 1.27 and 2.9 million; files of earlier
    # months have the same name and fewer rows.
    "minimind-v-pretrain": Recipe(
        "pretrain_i2t.parquet",
        1_274_698,
        "users of minimind-v_dataset",
        _IN_FILE,
        minimind_v,
        embedded="image_bytes",
    ),
    "minimind-v-sft": Recipe(
        "sft_i2t.parquet",
        2_904_511,
        "users of minimind-v_dataset",
        _IN_FILE,
        minimind_v,
        embedded="image_bytes",
    ),
    # Preference pairs. meta.json says how many records each annotation file has; about 3 million, says MMPR's card.
    "mmpr-v1.1": Recipe("meta.json", None, "", _MMPR, mmpr, has_meta=True, parse=parse_pair, rule=_META),
    "mmpr-v1.2": Recipe("meta.json", None, "", _MMPR, mmpr, has_meta=True, parse=parse_pair, rule=_META),
    "rlaif-v": Recipe(
        "RLAIF-V-Dataset_*.parquet",
        83_132,
        "card of trl-lib's copy",
        _IN_FILE,
        rlaif_v,
        embedded="image",
        columns=("question", "chosen", "rejected"),
        parse=parse_pair,
    ),
    "rlhf-v": Recipe(
        "RLHF-V-Dataset.parquet",
        5_733,
        "users of RLHF-V-Dataset",
        _IN_FILE,
        rlhf_v,
        embedded="image",
        columns=("text",),
        parse=parse_pair,
    ),
    "vlfeedback": Recipe(
        "vlfeedback_80k.jsonl",
        80_258,
        "card of VLFeedback",
        "merged_images.zip of the data set: merged_images/",
        vlfeedback,
        parse=parse_pair,
        rule=_RATED,
    ),
    # Copies of VLFeedback, with the images in the rows.
    "vlfeedback-parquet": Recipe(
        "data/train-*.parquet",
        80_258,
        "card of VLFeedback",
        _IN_FILE,
        vlfeedback,
        embedded="image",
        columns=("id", "prompt", "completions"),
        parse=parse_pair,
        rule=_RATED,
    ),
}
