"""From an annotation file's JSON to a checked conversation.

A raw record (LLaVA style; `foreign` lists all forms):

    {"id": "7", "image": "coco/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat color is the bus?"},
        {"from": "gpt",   "value": "Red."}]}

or with `messages`, whose contents are strings or lists of parts ({"type": "image", "image": "a.jpg"}). `image` (or
`images`) is a name, a list of names, or absent; `video` (or `videos`) likewise. Instead of a name there may be the
image itself: a data URL, or in a table bytes, or a struct of bytes and path. The placeholders in the user's turns are
filled in order; a single image without a placeholder is put before the first user turn. Any other disagreement is an
error: nothing is guessed. `record_checks` lists what is refused or warned about.

An answer with `"loss": false` or `"weight": 0` isn't learned, nor is its end token, and neither is an empty answer (the
official code and LLaVA's train its end token, and so a model that says nothing); a record with no other is left out.

With `"system": ""` the template's own message is used, as in XTuner and LLaMA-Factory. An empty system *turn* is an
empty system message, as in the official code, in transformers' chat templates, and in `chat` with `system_message` "".
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...errors import RecordError
from ..images.media import Blob
from .foreign import KEYS, RawTurn, turns_of
from .record_checks import PART_KEYS, check_keys, check_text, fail, kind_of, shorten, warn, warn_unread

IMAGE, VIDEO = "<image>", "<video>"
EITHER, ONLY_IMAGE = re.compile(f"({IMAGE}|{VIDEO})"), re.compile(f"({IMAGE})")
HALF = re.compile("[\ud800-\udfff]")
KNOWN_KEYS = KEYS | {"image", "images", "video", "videos", "system", "system_prompt"}


class Medium(NamedTuple):
    """An image or a video at its place in the text."""

    kind: str  # 'image' or 'video'; 'frame' after `expand_videos`
    name: str | Blob  # as the record writes it, relative to the image folder; a Blob where the record holds the image


UNNAMED = {IMAGE: Medium("image", ""), VIDEO: Medium("video", "")}  # placeholders, named by the record's own list


class Turn(NamedTuple):
    """One message of the user or the assistant."""

    role: str  # 'user' or 'assistant'
    parts: tuple[str | Medium, ...]  # texts and media in reading order; an assistant's turn is one text
    supervised: bool = True  # whether an assistant's text and end token are learned

    @property
    def text(self) -> str:
        """The texts of the turn without its media."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Record:
    """A checked conversation: user and assistant alternate, the assistant comes last."""

    turns: tuple[Turn, ...]
    source: str  # 'file:line'
    system: str | None = None  # replaces the template's system message
    extra: dict = field(default_factory=dict)  # the record's other keys, unchanged
    warnings: tuple[RecordError, ...] = ()  # what its author may not have meant; it is learned unchanged

    @property
    def media(self) -> list[Medium]:
        """Images and videos of all turns, in reading order."""
        return _media(self.turns)

    @property
    def texts(self) -> list[str]:
        """The texts of all turns, in reading order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, str)]

    def map_texts(self, change: Callable[[str], str]) -> "Record":
        """The record with every text of its turns changed."""
        turns = _map_parts(self.turns, lambda part: [change(part) if isinstance(part, str) else part])
        return replace(self, turns=tuple(turns))


def _map_parts(turns: Sequence[Turn], change: Callable[[str | Medium], list]) -> list[Turn]:
    """The turns with each text or medium replaced by the parts that `change` gives for it."""
    return [turn._replace(parts=tuple([new for part in turn.parts for new in change(part)])) for turn in turns]


def parse_record(raw: object, source: str) -> Record:
    """Check a decoded JSON value and turn it into a `Record`. `raw` is not modified.

    Raises:
        RecordError: the record can't be used; the message begins with `source`.
    """
    if not isinstance(raw, dict):
        fail(source, "record_type", f"a record must be an object, this is {kind_of(raw)}")
    return parse_turns(raw, turns_of(raw, source), source)


def parse_turns(raw: dict, written: list[RawTurn], source: str) -> Record:
    """As `parse_record`, with the conversation already taken from `raw`."""
    warnings: list[RecordError] = []
    given = {placeholder: _names(raw, medium.kind, source) for placeholder, medium in UNNAMED.items()}
    # Without a video, `<video>` is text (an HTML element). `<image>` never is: forgetting the image is too common.
    pattern = EITHER if given[VIDEO] else ONLY_IMAGE
    turns = [_turn(turn, number, pattern, source, warnings) for number, turn in enumerate(written, 1)]
    system = _system(raw, turns, source, warnings)
    turns = turns[turns[0].role == "system" :]
    _check_order([turn.role for turn in turns], source)
    extra = {key: value for key, value in raw.items() if key not in KNOWN_KEYS}
    has_media = any(given.values()) or any(medium.name != "" for medium in _media(turns))
    if not check_keys(extra, None, "the record", has_media, source, warnings):
        turns = [turn._replace(supervised=False) for turn in turns]
    turns, in_front = _fill_placeholders(turns, given, source)
    turns = _without_empty_answers(turns, source, warnings)
    for number, turn in enumerate(turns, 1):
        for text in (part for part in turn.parts if isinstance(part, str)):
            check_text(text, turn.role, number, in_front, extra.get("objects"), source, warnings)
    return Record(tuple(turns), source, system, extra, tuple(warnings))


def _turn(turn: RawTurn, number: int, pattern: re.Pattern, source: str, warnings: list[RecordError]) -> Turn:
    """One raw turn; the user's placeholders become media without a name."""
    role, content, where = turn.role, turn.content, f"turn {number}"
    learned = check_keys(turn.rest, role, where, False, source, warnings)
    if isinstance(content, str):
        parts = [clean(content, where, source)]
        if role == "user":
            parts = pattern.split(parts[0]) if "<" in content else parts
            parts = [UNNAMED.get(part, part) if odd % 2 else part for odd, part in enumerate(parts) if part]
    elif isinstance(content, list) and turn.has_parts:
        parts = [_part(part, role, where, source, warnings) for part in content]
    else:
        fail(source, "turn_content", f"the text of {where} is {kind_of(content)}")
    return Turn(role, tuple(parts) if role == "user" else ("".join(parts),), learned)


def clean(text: str, where: str, source: str) -> str:
    """The text itself; a `RecordError` where it holds half of a surrogate pair."""
    if not text.isascii() and (half := HALF.search(text)):
        problem = f"{where} holds half of a surrogate pair (\\u{ord(half[0]):04x}), which is no character"
        fail(source, "unicode", problem)
    return text


def _part(part: object, role: str, where: str, source: str, warnings: list[RecordError]) -> str | Medium:
    """One part of a list content: {"type": "text" | "image" | "image_url" | "video", ...}."""
    if isinstance(part, str):
        return clean(part, where, source)
    kind = part.get("type") if isinstance(part, dict) else None
    for key in part.keys() - PART_KEYS if kind else ():
        if part[key]:
            warn_unread(warnings, source, f"a part of {where}", key)
    if kind == "text" and isinstance(part.get("text"), str):
        return clean(part["text"], where, source)
    if kind in ("image", "image_url", "video", "video_url"):
        if role != "user":
            fail(source, "media_role", f"{where} ({role}) holds a {kind}")
        kind = kind.removesuffix("_url")
        value = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key) is not None), None)
        value = value.get("url", value) if isinstance(value, dict) else value
        return Medium(kind, "" if value is None else read_name(value, f"a part of {where}", source))
    fail(source, "turn_part", f"{where} has a part that is neither text, image nor video: {shorten(str(part))}")


def _system(raw: dict, turns: list[Turn], source: str, warnings: list[RecordError]) -> str | None:
    """The record's own system message; None means that of the template."""
    places = [number for number, turn in enumerate(turns, 1) if turn.role == "system"]
    if places and places != [1]:
        fail(source, "turn_order", f"turn {places[-1]} is a system turn")
    given = [raw[key] for key in ("system", "system_prompt") if raw.get(key) is not None]
    own = [text for text in given if not isinstance(text, str) or text.strip()]
    if len(own) + len(places) > 1:
        fail(source, "system_twice", "several system messages")
    if own and not isinstance(own[0], str):
        fail(source, "system_type", f"'system' is {kind_of(own[0])}")
    if places and not turns[0].text.strip():
        warn(warnings, source, "empty_system", "an empty system turn takes the template's message away")
    if own:
        return clean(own[0], "'system'", source)
    return turns[0].text if places else None


def _check_order(roles: list[str], source: str) -> None:
    for number, role in enumerate(roles, 1):
        if role != (expected := "user" if number % 2 else "assistant"):
            problem = f"turn {number} (system not counted) is the {role}'s, expected the {expected}'s"
            fail(source, "turn_order", problem)
    if not roles or roles[-1] == "user":
        fail(source, "no_answer", "the last turn is the user's: nothing to learn" if roles else "no turns")


def _names(raw: dict, kind: str, source: str) -> list[str | Blob]:
    """The record's own list of images or videos."""
    present = [key for key in (kind, kind + "s") if raw.get(key) is not None]
    if len(present) > 1:
        fail(source, "media_twice", f"both '{kind}' and '{kind}s'")
    value = raw[present[0]] if present else []
    value = value if isinstance(value, list) else [value]
    return [read_name(name, f"{kind} {number}", source) for number, name in enumerate(value, 1)]


def read_name(value: Any, where: str, source: str) -> str | Blob:
    """A name as the record writes it, or an image that the record holds, as a `Blob`; `RecordError` for anything else.

    Args:
        where: of the name, or what the image is called, such as 'image 1'.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value
    if isinstance(value, str) and value.startswith("data:"):
        head, _, data = value.partition(",")
        try:
            value = base64.b64decode(data if head.endswith(";base64") else "?", validate=True)
        except ValueError:
            fail(source, "media_name", f"{where} is a data URL that isn't whole base64 ({head[:40]})")
    if isinstance(value, bytes):
        return Blob(f"{where} of line {source.rpartition(':')[2]}", value)
    if not isinstance(value, str) or not value.strip():
        fail(source, "media_name", f"the name of {where} is {kind_of(value) if value != '' else 'empty'}")
    return clean(value, where, source)


def _fill_placeholders(turns: list[Turn], given: dict[str, list], source: str) -> tuple[list[Turn], bool]:
    """The turns with names in all media, and whether a medium without placeholder was put before the first turn."""
    media, in_front = _media(turns), False
    for placeholder, names in given.items():
        unnamed = UNNAMED[placeholder]
        if len(names) == 1 and not any(medium.kind == unnamed.kind for medium in media):
            turns = [turns[0]._replace(parts=(unnamed, "\n", *turns[0].parts)), *turns[1:]]
            in_front = True
        elif (found := media.count(unnamed)) != len(names):
            given_ones = f"{len(names)} {unnamed.kind}{'s' * (len(names) != 1)} given by '{unnamed.kind}'"
            fail(source, f"{unnamed.kind}_count", f"{found} {placeholder} in the user's turns, but {given_ones}")
    if not media and not in_front:
        return turns, False
    left = {UNNAMED[placeholder]: iter(names) for placeholder, names in given.items()}

    def fill(part: str | Medium) -> list[str | Medium]:
        is_left = isinstance(part, Medium) and part in left
        return [Medium(part.kind, next(left[part])) if is_left else part]

    return _map_parts(turns, fill), in_front


def _media(turns: Sequence[Turn]) -> list[Medium]:
    return [part for turn in turns for part in turn.parts if isinstance(part, Medium)]


def _without_empty_answers(turns: list[Turn], source: str, warnings: list[RecordError]) -> list[Turn]:
    """The turns, of which answers without a text aren't learned."""
    emptied = [number for number, turn in enumerate(turns) if turn.supervised and not turn.text.strip()]
    for number in emptied:
        warn(warnings, source, "empty_answer", f"turn {number + 1} is an empty answer", "it isn't learned")
        turns[number] = turns[number]._replace(supervised=False)
    if not any(turn.supervised for turn in turns):
        if emptied:
            fail(source, "empty_answer", "its answers are empty")
        fail(source, "no_answer", "no answer is learned, each has loss false or weight 0", "remove the record")
    return turns


def expand_videos(record: Record, num_frames: Sequence[int]) -> Record:
    """The record with each video replaced by its frames, a line of text for each, as in the official code.

        Frame-1: <image>\\nFrame-2: <image>\\n...

    Args:
        num_frames: of each of the record's videos, in order.
    """
    counts = iter(num_frames)

    def expand(part: str | Medium) -> list[str | Medium]:
        if not isinstance(part, Medium) or part.kind != "video":
            return [part]
        lines = ["\n" * (number > 1) + f"Frame-{number}: " for number in range(1, next(counts) + 1)]
        return [each for line in lines for each in (line, Medium("frame", part.name))]

    return replace(record, turns=tuple(_map_parts(record.turns, expand))) if num_frames else record
