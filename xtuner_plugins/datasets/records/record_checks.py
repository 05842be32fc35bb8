"""Conventions of other projects' data, which would train something else than their authors meant.

An error where nothing else can be meant: the record is unusable. A warning where the same characters may be ordinary
text, such as HTML or a question about a prompt format: the record is learned unchanged, `Record.warnings` holds the
warning, and `tools/check_data.py` counts it.

    form                                    in a question                                  in an answer
    <img>a.jpg</img>, <audio>a.wav</audio>  error: the file is named nowhere else          warning
    <|image_pad|>, <|vision_start|>,        error: only prompts of other models hold it    warning
      <ImageHere>, <image_soft_token> ...
    <Image>, <image_1>, <image 1> ...       error where the record's image has no other    warning
                                            place; else a warning
    <IMG_CONTEXT>                           warning: characters, never the token           warning
    <audio>, <img>x</img>                   the same: HTML has them, too                   warning
    <bbox>, <ref-object>                    filled from ms-swift's "objects" (`objects`);  the same
                                            an error beside another "objects"; else a
                                            warning
    <|box_start|>, <|det|> ...              error beside "objects"; else a warning         warning
    <image>                                 (the image's place); in a text part a warning  error where the image has no
                                                                                           other place; else a warning
"""

import json
import re
from collections.abc import Iterator
from typing import NoReturn

from ..errors import RecordError

FILE = r"[^<>\n]+\.[A-Za-z0-9]{2,5}\s*"
FORMS = re.compile(  # `<` comes first and alone, so that the search jumps from one to the next
    rf"<(?:(?P<file>(?P<tag>img|audio|video)>{FILE}</(?P=tag)>)"
    r"|(?P<certain>\|(?:image|video|audio|vision|img)[ _-]?\w*\|>|ImageHere>|VideoHere>"
    r"|(?:image|video|audio)[_-](?:soft_token|placeholder|pad|token|feature|features|patch)>|(?:start|end)_of_image>"
    r"|im_patch>)"
    r"|(?P<grounding>bbox>|ref-object>|\|(?:box|object_ref|quad)_(?:start|end)\|>|\|/?(?:det|ref|grounding)\|>)"
    r"|(?P<own>IMG_CONTEXT>)"
    r"|(?P<maybe>(?:image|img|video)[ _-]?\d+>|(?!image>|video>|img>)(?i:image|video|img)>|audio>|img>[^<]+</img>))"
)
# Other names for media. Beside "image" or "video" they are further facts about it and are ignored.
MEDIA_KEYS = frozenset(
    "Image Images IMAGE img imgs image_path image_paths image_file image_files image_name image_list image_url"
    " image_urls img_path img_paths img_url img_file image images pic photo photos Video Videos video_path"
    " video_paths video_file video_list video_url video_urls media".split()
)
AUDIO_KEYS = frozenset("audio audios audio_path audio_paths audio_url audio_file".split())
TURN_MEDIA_KEYS = MEDIA_KEYS | AUDIO_KEYS | {"image", "images", "video", "videos"}
FORM_REMEDIES = {
    "file": "name the file in 'image' and write <image> in its place",
    "certain": "write <image> (or <video>) in its place",
    "maybe": "write <image> (or <video>) in its place",
    "own": "write <image> in its place",
    "grounding": "write <ref>...</ref><box>[[x1, y1, x2, y2]]</box>",
}
FILLED = ("<bbox>", "<ref-object>")  # placeholders of ms-swift
# Names of others for "loss" and "weight"
LOSS_KEYS = frozenset("train trainable mask masked loss_mask mask_loss need_loss with_loss loss_weight".split())
# What others write into the prompt, and what they take for a rating of the answer
OTHER_SETTINGS = {
    "tools": "no template here writes tools",
    "functions": "no template here writes tools",
    "system_prompt": "write it as 'system'",
    "kto_tag": "the answer is learned, whether it is a good one or not",
}
READ_ELSEWHERE = MEDIA_KEYS | AUDIO_KEYS | LOSS_KEYS | {"loss", "weight"} | OTHER_SETTINGS.keys()


def fail(source: str, reason: str, problem: str, remedy: str = "") -> NoReturn:
    """Raise an error about the record at `source` (`file:line`)."""
    raise RecordError(reason, problem, remedy, source)


def warn(warnings: list[RecordError], source: str, reason: str, problem: str, remedy: str) -> None:
    """Add a warning about the record at `source`."""
    warnings.append(RecordError(reason, problem, remedy, source))


def shorten(text: str, limit: int = 60) -> str:
    """The text as messages show it."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def find_forms(text: str) -> Iterator[tuple[str, str]]:
    """Foreign forms in a text, as (kind, form); kinds are the names of the groups of `FORMS`.

    A text without `<` has none, and callers test that first, which is much faster.
    """
    for match in FORMS.finditer(text):
        yield match.lastgroup, match[0][:60]


def find_key(record: dict, names: frozenset[str]) -> str | None:
    """The first of these keys, sorted, whose value isn't empty."""
    return next((key for key in sorted(record.keys() & names) if record[key]), None)


def is_learned(message: dict, role: str, number: int, source: str) -> bool:
    """Whether a turn with further keys is learned; not with `"loss": false` or `"weight": 0`."""
    if (key := find_key(message, TURN_MEDIA_KEYS)) is not None:
        fail(
            source,
            "media_key",
            f"turn {number} names a file by a key of its own, {key!r}",
            "name it in the record's 'image', with <image> in the turn's text",
        )
    if (key := next(iter(sorted(message.keys() & LOSS_KEYS)), None)) is not None:
        fail(source, "turn_loss", f"turn {number} has {key!r}", 'write "loss": false for a turn that isn\'t learned')
    learned = role == "assistant"
    for key in ("loss", "weight"):
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1) or isinstance(value, float) and key == "loss":
            fail(
                source,
                "turn_loss",
                f"turn {number} has {key} {shorten(str(value))}",
                f'write "{key}": {"false or true" if key == "loss" else "0 or 1"}; dataset_settings has loss_weight',
            )
        if value and role != "assistant":
            fail(source, "turn_loss", f"turn {number} ({role}) has {key} {value}", "only answers are learned")
        learned = learned and bool(value)
    return learned


def check_keys(extra: dict, has_media: bool, source: str, warnings: list[RecordError]) -> None:
    """Complain of media and settings under keys that aren't read (`READ_ELSEWHERE`)."""
    if not has_media and (key := find_key(extra, MEDIA_KEYS)) is not None:
        fail(source, "media_key", f"{key!r} isn't read, and no 'image' or 'video' is given", "rename it to 'image'")
    if (key := find_key(extra, AUDIO_KEYS)) is not None:
        problem = f"{key!r} isn't read: models here don't hear"
        if not has_media:
            fail(source, "audio", problem, "remove the record")
        warn(warnings, source, "audio", problem, "remove the record if its answers depend on sound")
    for key in ("loss", "weight", *sorted(LOSS_KEYS & extra.keys())):
        if extra.get(key) is not None:
            remedy = "write it on a turn, or weigh the whole file by loss_weight in dataset_settings"
            warn(warnings, source, "ignored_key", f"{key!r} of a record isn't read", remedy)
    for key, remedy in OTHER_SETTINGS.items():
        if extra.get(key) not in (None, "", "[]", []):
            warn(warnings, source, "ignored_key", f"{key!r} of a record isn't read", remedy)


def read_fillers(objects: object) -> dict | None:
    """A record's "objects" if they are ms-swift's, which fill placeholders in the texts; else None.

    Its release 2 has a list of {caption, bbox, bbox_type, image}, often as JSON text; here it is given as release 3's
    lists {ref, bbox, bbox_type, image_id}.
    """
    if isinstance(objects, str) and objects.lstrip().startswith("["):
        try:
            objects = json.loads(objects)
        except (ValueError, RecursionError):
            return None
    if isinstance(objects, dict):
        return objects if "bbox" in objects or "ref" in objects else None
    if not isinstance(objects, list) or not objects:
        return None
    if not all(isinstance(item, dict) and "bbox" in item for item in objects):
        return None
    keys = {"ref": "caption", "bbox": "bbox", "bbox_type": "bbox_type", "image_id": "image"}
    columns = {name: [item.get(key) for item in objects] for name, key in keys.items()}
    columns["image_id"] = [0 if number is None else number for number in columns["image_id"]]
    return columns


def check_texts(marked: list, in_front: bool, objects: object, source: str, warnings: list[RecordError]) -> None:
    """Complain of foreign forms in texts with `<`; the module lists which are errors and which warnings.

    Args:
        marked: of each text: number of its turn, role, text, whether it is a part of a list.
        in_front: whether the record's only image or video has no placeholder in the user's turns.
        objects: the record's "objects", with which others fill `<bbox>`; None without.
    """
    fills = read_fillers(objects) is not None
    for number, role, text, is_part in marked:
        asked = role == "user"
        if "<image>" in text and (not asked or is_part):
            problem = f"<image> in {'a text part of' if asked else 'the answer of'} turn {number} is plain text"
            remedy = "write the image's part" if asked else "move it to the user's turn before"
            if in_front:
                fail(source, "media_role", f"{problem}, and the image has no other place", remedy)
            warn(warnings, source, "media_role", problem, f"{remedy} if it stands for an image")
        for kind, form in find_forms(text):
            if fills and form in FILLED:
                continue
            problem, remedy = f"{form!r} in turn {number} is plain text", FORM_REMEDIES[kind]
            if asked and (
                kind in ("file", "certain")
                or kind == "maybe"
                and in_front
                or kind == "grounding"
                and objects is not None
            ):
                fail(source, "foreign_form", problem, remedy)
            warn(warnings, source, "foreign_form", problem, f"{remedy}, unless it is meant as text")
