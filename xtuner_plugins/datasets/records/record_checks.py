"""What is wrong with records, said once: `REASONS` has every reason with its meaning and its remedy.

An error where nothing else can be meant: the record is unusable. A warning where the same characters may be ordinary
text, such as HTML or a question about a prompt format: the record is learned unchanged, `Record.warnings` holds the
warning, and `tools/check_data.py` counts it. The table in docs/data.md is made from `REASONS`
(`python -m xtuner_plugins.datasets.records.record_checks`).
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ...errors import RecordError

TAGS = "<image> (or <video>, or <ref>...</ref><box>[[x1, y1, x2, y2]]</box>)"
# Reasons with their meanings and remedies. `~` before one: it may also be a warning; `~~`: it is only a warning.
_TABLE = {
    "json": ("not JSON, nested too deeply, or a comma after the object", "write one JSON object per line, or an array"),
    "json_duplicate_key": ("a key twice in one object", "keep one of them"),
    "encoding": ("not UTF-8", "save the file as UTF-8"),
    "record_bytes": ("a record of more than 50 MiB", "divide it, or remove it"),
    "record_type": ("no JSON object", 'write {"image": ..., "conversations": [...]}'),
    "no_conversations": ("no turns", 'give "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]'),
    "two_formats": ("turns, or an answer, under two keys", "keep one of them"),
    "conversations_type": ("turns that are no list", "make it a list of turns"),
    "history": ("`history` that is no list of pairs", "write [[question, answer], ...]"),
    "turn_type": ("a turn that is no object", "make it an object"),
    "turn_keys": ("a turn without a role or a text", "give every turn 'from' and 'value', or 'role' and 'content'"),
    "turn_role": ("an unknown role", "roles are human, user, gpt, assistant, system, bot, chatgpt, bard, bing, model"),
    "turn_content": ("a text that is no string", "make it a string"),
    "turn_part": ("a part that is neither text, image nor video", 'write {"type": "text", "text": ...}'),
    "turn_order": ("roles out of turn", "user and assistant speak in turn, the user first; a system turn before them"),
    "turn_loss": ("a mark of loss not 0 or 1, of another name, or not an answer's", 'write "loss": false in an answer'),
    "no_answer": ("no answer that is learned", "end with an assistant's answer, or remove the record"),
    "~empty_answer": ("an empty answer isn't learned, nor a record of such alone", "give it an answer or remove it"),
    "bad_answer": ("`label` false, `kto_tag`, `rejected...`, `score` or `reward` <= 0", "remove it, or make it a pair"),
    "system_type": ("`system` that is no text", "make it a string"),
    "system_twice": ("several system messages", "keep one of them"),
    "~~empty_system": ("an empty system turn replaces the template's", "remove it, or chat with system_message = ''"),
    "unicode": ("half of a surrogate pair", "write the file as UTF-8, or whole pairs"),
    "media_name": ("a medium's name that is no text, is empty, or a broken data URL", 'write "image": "folder/file"'),
    "media_twice": ("`image` beside `images`, or `video` beside `videos`", "keep one of them"),
    "media_key": ("a file (or sound) named by a key that isn't read", "name it in 'image', with <image> in the text"),
    "~media_role": ("an image outside the user's turns", "images stand in the user's turns"),
    "image_count": ("placeholders and images that differ in number", "name one image for each <image>"),
    "video_count": ("placeholders and videos that differ in number", "name one video for each <video>"),
    "~foreign_form": ("others' `<Image>`, `<|image_pad|>`, `<bbox>` ...", f"write {TAGS}, unless it is meant as text"),
    "~objects": ("ms-swift's `objects` that don't fit its placeholders", "give one for each <ref-object> and <bbox>"),
    "boxes": ("a box out of range, inverted or not closed, or a size that isn't the image's", "correct the box"),
    "~~grounding": ("a `<box>` without numbers or in fractions, or a tag alone", "close it, and write 0 to 1000"),
    "~~unread_key:NAME": ("an unread key (`reasoning_content`, `tools` ...)", "remove it, or name it in columns"),
    "no_pair": ("a pair without a chosen or a rejected answer", 'give "chosen": "..." and "rejected": "..."'),
    "no_prompt": ("a pair without a prompt", 'give "prompt": "..."'),
    "two_prompts": ("a pair whose answers follow different messages", "let only the last message differ"),
    "equal_answers": ("a pair of equal answers", "remove the record: it prefers nothing"),
    "pair_answer": ("an answer of a pair that is no text and no message", 'write "chosen": "..."'),
    "sample": ("a sample of a tar without .json and .txt", "write the record beside the image"),
    "table_unreadable": ("a row that can't be decoded", "fetch the file again"),
}
REASONS = {name.strip("~"): words for name, words in _TABLE.items()}
KINDS = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true/false"}
KINDS[type(None)] = "null"

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
FILLED = ("<bbox>", "<ref-object>")  # placeholders of ms-swift
# Other names for media and sound, which are an error where no other medium is given
MEDIA_KEYS = re.compile(r"(?i)(image|img|pic|picture|photo|video|media|audio)s?(_(path|file|name|list|url)s?)?")
LOSS_KEYS = ("loss", "weight", "loss_scale", "train", "training", "train_detail")  # obeyed
OTHER_LOSS_KEYS = frozenset("trainable mask masked loss_mask mask_loss need_loss with_loss loss_weight".split())
# Facts about a record or a turn that change nothing
FACTS = frozenset(
    "id idx index uid uuid key source dataset data_source dataset_name data_name task task_type type kind category"
    " split width height width_list height_list length conversation_id image_id image_ids question_id sample_id"
    " video_id url license language lang model metadata meta num_tokens boxes objects".split()
)
PART_KEYS = frozenset("type text image image_url video video_url path url".split())
NOTHING = (None, "", "[]", "{}", [], {}, False)


def fail(source: str, reason: str, problem: str, remedy: str = "") -> NoReturn:
    """Raise an error about the record at `source` (`file:line`); the remedy is that of `REASONS` unless given."""
    raise RecordError(reason, problem, remedy or REASONS[reason][1], source)


def warn(warnings: list[RecordError], source: str, reason: str, problem: str, remedy: str = "") -> None:
    """Add a warning about the record at `source`; the remedy is that of `REASONS` unless given."""
    warnings.append(RecordError(reason, problem, remedy or REASONS[reason][1], source))


def warn_unread(warnings: list[RecordError], source: str, where: str, key: str) -> None:
    """Add the warning about a key that nothing reads, which is counted by its name."""
    reason = f"unread_key:{key[:40]}".encode("utf-8", "replace").decode()
    warn(warnings, source, reason, f"{where} has {key!r}, which isn't read", REASONS["unread_key:NAME"][1])


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return KINDS.get(type(value), type(value).__name__)


def shorten(text: str, limit: int = 60) -> str:
    """The text as messages show it."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def reasons_table() -> str:
    """The Markdown table of docs/data.md."""
    lines = ["| reason | what is wrong | what to do |", "|---|---|---|"]
    for name, words in _TABLE.items():
        level = ("", " (or a warning)", " (a warning)")[name.count("~")]
        meaning, remedy = (text.replace("|", "\\|") for text in words)
        lines.append(f"| `{name.strip('~')}`{level} | {meaning} | {remedy.replace('<', '&lt;')} |")
    return "\n".join(lines)


def check_keys(
    keys: Mapping[str, Any], role: str | None, where: str, has_media: bool, source: str, warnings: list[RecordError]
) -> bool:
    """Look at the further keys of a turn, or of a record; returns whether it is learned.

    Args:
        role: of the turn; None of a record.
        has_media: whether it names media by keys that are read.

    Raises:
        RecordError: media or sound under keys that aren't read, an answer that isn't to be learned, or a mark of loss
            that can't be obeyed.
    """
    learned = role in (None, "assistant")
    for key in sorted(keys.keys() - FACTS):
        value = keys[key]
        if value and not has_media and MEDIA_KEYS.fullmatch(key):
            fail(source, "media_key", f"{where} names media by {key!r}, which isn't read there")
        if role is None and _is_bad(key, value):
            fail(source, "bad_answer", f"{where} has {key!r}: {shorten(str(value), 30)}")
        if role is not None and key in OTHER_LOSS_KEYS:
            fail(source, "turn_loss", f"{where} has {key!r}")
        if key == "train_detail":
            value = _of_spans(value)
        if key in LOSS_KEYS and value is not None:
            if role in ("user", "system") and value:
                fail(source, "turn_loss", f"{where} ({role}) has {key} {value}")
            if isinstance(value, str) or value not in (0, 1):
                remedy = "write 0 or 1, or weigh the whole file by loss_weight in dataset_settings"
                fail(source, "turn_loss", f"{where} has {key} {shorten(str(value))}", remedy)
            learned = bool(value) and learned
        elif value not in NOTHING:
            warn_unread(warnings, source, where, key)
    return learned


def _is_bad(key: str, value: object) -> bool:
    """Whether a key of a record says that its answer is a bad one."""
    if key in ("score", "reward"):
        return type(value) in (int, float) and value <= 0
    if key in ("label", "kto_tag"):
        return value is not None if key == "kto_tag" else value is False
    return key.startswith("rejected") and value not in NOTHING


def _of_spans(spans: object) -> object:
    """What Axolotl's `train_detail` says of a whole turn; the value itself where its spans differ."""
    said = {span.get("train") for span in spans if isinstance(span, dict)} if isinstance(spans, list) else ()
    return said.pop() if len(said) == 1 else spans or None


def fills_texts(objects: object) -> bool:
    """Whether a record's "objects" are ms-swift's, which fill placeholders in the texts."""
    return isinstance(objects, dict) and ("bbox" in objects or "ref" in objects)


def check_text(
    text: str, role: str, number: int, in_front: bool, objects: object, source: str, warnings: list[RecordError]
) -> None:
    """Complain of foreign forms in a text of turn `number`, without the placeholders that were filled.

    In a question a named file and other models' own tokens are errors; other names of images where the record's image
    has no other place; forms of boxes beside `objects` that don't fill them. All others are warnings.

    Args:
        in_front: whether the record's only image or video has no placeholder in the user's turns.
        objects: the record's "objects".
    """
    asked = role == "user"
    if "<image>" in text:
        problem = f"<image> in {'a text part of' if asked else 'the answer of'} turn {number} is plain text"
        remedy = "write the image's part" if asked else "move it to the user's turn before"
        if in_front:
            fail(source, "media_role", f"{problem}, and the image has no other place", remedy)
        warn(warnings, source, "media_role", problem, f"{remedy} if it stands for an image")
    is_certain = {"file": True, "certain": True, "maybe": in_front, "grounding": objects is not None}
    for match in FORMS.finditer(text):
        if match[0] in FILLED and fills_texts(objects):
            continue
        problem = f"{match[0][:60]!r} in turn {number} is plain text"
        if asked and is_certain.get(match.lastgroup):
            fail(source, "foreign_form", problem)
        warn(warnings, source, "foreign_form", problem)


if __name__ == "__main__":
    print(reasons_table())
