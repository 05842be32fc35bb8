"""The kinds of records that other projects keep their data in: how each is recognized, and how it is read.

`KINDS` is the only list of them. Most are read as they are: rewriting them is exact and costs microseconds. Images
inside a record aren't: base64 would be decoded again at every measurement and in every epoch, so `convert` writes them
out once. A record is first parsed as one of ours and meets this table only where it can't be, so ours cost no more.
"""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .record_checks import fail, read_fillers
from .rewrites import (
    IMG_TAG,
    TURN_KEYS,
    from_alpaca,
    from_conversation,
    from_query,
    from_qwen_vl,
    from_sharegpt,
    has_turns,
    is_question,
    turn_keys,
)

if TYPE_CHECKING:
    from .index import OffsetIndex

DATA_URL = "data:"
MEDIA_NAMES = ("image", "images", "video", "videos")
ORDINARY_ROLES = {"human", "gpt", "user", "assistant", "system"}
DIRECTLY, BY_CONVERT, ELSEWHERE = "directly", "by convert", "elsewhere"
SHOWN_RECORDS = 100  # of a file, that `describe` looks at


class Kind(NamedTuple):
    """A kind of records.

    Attributes:
        name: as `convert --from` takes it.
        project: whose it is.
        form: by what it is recognized.
        matches: whether a record is of this kind; the first one of `KINDS` that says so is meant.
        reading: `DIRECTLY`, `BY_CONVERT` (refused with that command), or `ELSEWHERE` (refused with `remedy`).
        rewrite: (record, `file:line`) -> what `parse_record` reads, or None where it reads the record itself.
        remedy: what to do with a record that is read elsewhere.
    """

    name: str
    project: str
    form: str
    matches: Callable[[dict], bool]
    reading: str = DIRECTLY
    rewrite: Callable[[dict, str], dict | None] = lambda raw, source: None
    remedy: str = ""


def media_names(raw: dict) -> Iterator[str]:
    """The names of all media, in the record's own lists and in parts of contents."""
    for key in MEDIA_NAMES:
        value = raw.get(key)
        yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))
    for part in parts_of(raw):
        yield from (name for _, name in part_names(part))


def parts_of(raw: dict) -> Iterator[dict]:
    """The parts of contents that are lists."""
    for name, (_, text_key) in TURN_KEYS.items():
        turns = raw.get(name)
        for turn in turns if isinstance(turns, list) else ():
            content = turn.get(text_key) if isinstance(turn, dict) else None
            yield from (part for part in (content if isinstance(content, list) else ()) if isinstance(part, dict))


def part_names(part: dict) -> Iterator[tuple[str, str]]:
    """(key, name) of a part: {"image": name} or {"image_url": {"url": name}}."""
    for key in ("image", "image_url", "video", "video_url", "path", "url"):
        value = part.get(key)
        value = value.get("url") if isinstance(value, dict) else value
        if isinstance(value, str):
            yield key, value


def _has_objects(raw: dict) -> bool:
    return read_fillers(raw.get("objects")) is not None and any(key in raw for key in TURN_KEYS)


def _is_meta(raw: dict) -> bool:
    return bool(raw) and all(isinstance(entry, dict) and "annotation" in entry for entry in raw.values())


def _is_pair(raw: dict) -> bool:
    return any(key.startswith("rejected") for key in raw) and not any(key in raw for key in TURN_KEYS)


def _has_image_tags(raw: dict) -> bool:
    if any(raw.get(key) for key in MEDIA_NAMES):
        return False
    name = next((name for name in TURN_KEYS if name in raw), None)
    role_key, text_key = turn_keys(raw.get(name))
    return bool(role_key) and any(
        isinstance(turn, dict)
        and is_question(turn, role_key)
        and isinstance(turn.get(text_key), str)
        and IMG_TAG.search(turn[text_key]) is not None
        for turn in raw[name]
    )


def _is_sharegpt(raw: dict) -> bool:
    if any(
        has_turns(raw, name, other) for name, other in (("conversations", "messages"), ("messages", "conversations"))
    ):
        return True
    name = next((name for name in TURN_KEYS if name in raw), "")
    role_key, _ = turn_keys(raw.get(name))
    roles = [turn.get(role_key) for turn in raw[name] if isinstance(turn, dict)] if role_key else []
    return any(isinstance(role, str) and role not in ORDINARY_ROLES for role in roles)


KINDS = (
    Kind(
        "data-url",
        "OpenAI, and any other",
        "an image's name begins with `data:`: the image is inside the record",
        lambda raw: any(name.startswith(DATA_URL) for name in media_names(raw)),
        BY_CONVERT,
    ),
    Kind(
        "internvl-meta",
        "official InternVL",
        "an object of data sets, each with `root` and `annotation`",
        _is_meta,
        ELSEWHERE,
        remedy="name the meta file itself in data_paths, without image_folders",
    ),
    Kind(
        "pairs",
        "ms-swift, LLaMA-Factory, TRL, MMPR, RLAIF-V",
        "a key that begins with `rejected`",
        _is_pair,
        ELSEWHERE,
        remedy="train preference pairs with PreferenceDataset (docs/preference.md)",
    ),
    Kind(
        "swift-objects",
        "ms-swift",
        "`messages` with `<ref-object>` and `<bbox>`, which `objects` (`ref`, `bbox`, `bbox_type`, `image_id`) fills",
        _has_objects,
    ),
    Kind(
        "swift-query",
        "ms-swift",
        "`query` and `response`, with `history` and `system`",
        lambda raw: "query" in raw and "response" in raw,
        rewrite=from_query,
    ),
    Kind(
        "alpaca",
        "LLaMA-Factory",
        "`instruction` and `output`, with `input`, `history`, `system`, `images`",
        lambda raw: "instruction" in raw and "output" in raw,
        rewrite=from_alpaca,
    ),
    Kind(
        "swift-conversation",
        "ms-swift",
        "`conversation` of `human` and `assistant`",
        lambda raw: "conversation" in raw,
        rewrite=from_conversation,
    ),
    Kind(
        "qwen-vl",
        "Qwen-VL",
        "`<img>a.jpg</img>` in a question, and no `image`",
        _has_image_tags,
        rewrite=from_qwen_vl,
    ),
    Kind(
        "sharegpt",
        "ShareGPT, FastChat",
        "other roles (`bot`, `chatgpt`, `USER`, ...), or `role` and `content` in `conversations`",
        _is_sharegpt,
        rewrite=from_sharegpt,
    ),
    Kind(
        "messages",
        "ms-swift, LLaMA-Factory, OpenAI",
        "`messages` of `role` and `content`",
        lambda raw: "messages" in raw,
    ),
    Kind(
        "llava",
        "LLaVA, official InternVL, LLaMA-Factory (sharegpt)",
        "`conversations` of `from` and `value`",
        lambda raw: "conversations" in raw,
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}


def recognize(raw: object) -> Kind | None:
    """The kind of a record; None for an unknown one."""
    return next((kind for kind in KINDS if kind.matches(raw)), None) if isinstance(raw, dict) else None


def rewrite(raw: dict, source: str) -> dict | None:
    """A record of another project as `parse_record` reads it; None where there is nothing to rewrite.

    Raises:
        RecordError: its kind isn't read directly; the remedy is the command that converts it.
    """
    kind = recognize(raw)
    if kind is None:
        return None
    if kind.reading == BY_CONVERT:
        fail(source, "convert", f"{kind.form} ({kind.name})", f"run: {convert_command(kind, source)}")
    if kind.reading == ELSEWHERE:
        fail(source, "no_conversations", f"no conversations: {kind.form} ({kind.name})", kind.remedy)
    return kind.rewrite(raw, source)


def convert_command(kind: Kind, source: str) -> str:
    """The command that converts the file of `source` (`file:line`)."""
    path = Path(source.rpartition(":")[0])
    out, folder = path.with_name(f"{path.stem}.converted.jsonl"), path.with_name(f"{path.stem}.images")
    names = " ".join(shlex.quote(str(name)) for name in (path, out))
    return f"python tools/prepare_data.py convert {names} --from {kind.name} --image-folder {shlex.quote(str(folder))}"


def describe(index: "OffsetIndex") -> str:
    """The kinds among a file's first records, the most frequent first; '' where none can be read."""
    found: dict[str, int] = {}
    for row in range(min(SHOWN_RECORDS, len(index))):
        try:
            kind = recognize(index.parse(row))
        except ValueError:  # said where the record is checked
            continue
        if kind is not None:
            found[kind.name] = found.get(kind.name, 0) + 1
    return ", ".join(sorted(found, key=lambda name: -found[name]))


def kinds_table() -> str:
    """A line for each kind: name, how it is read, how it is recognized, whose it is."""
    return "\n".join(f"{kind.name:<20}{kind.reading:<12}{kind.form} ({kind.project})" for kind in KINDS)
