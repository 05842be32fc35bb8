"""From an annotation file's JSON to a checked conversation.

A raw record (LLaVA style; `foreign` lists all forms):

    {"id": "7", "image": "coco/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat color is the bus?"},
        {"from": "gpt",   "value": "Red."}]}

or with `messages`, whose contents are strings or lists of parts:

    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "And this?"}]},
        {"role": "assistant", "content": "A dog."}]}

`image` (or `images`) is a name, a list of names, or absent; `video` (or `videos`) likewise. A name may be a data URL,
which holds the image itself. The placeholders in the user's turns are filled in order; a single image without a
placeholder is put before the first user turn. Any other disagreement is an error: nothing is guessed. `record_checks`
lists what is refused or warned about.

An answer with `"loss": false` or `"weight": 0` is part of the conversation but isn't learned, nor is its end token. An
answer that is empty or white space isn't learned either (the official code and LLaVA's train its end token, and so a
model that says nothing); a record with no other answer is left out, as `empty_answer`.

With `"system": ""` the template's own message is used, as in XTuner and LLaMA-Factory. An empty system *turn* is an
empty system message, as in the official code and in transformers' chat templates: `chat` builds the same prompt where
the model's `system_message` is "".
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...errors import RecordError
from ..images.media import Blob
from .foreign import KEYS, RawTurn, turns_of
from .record_checks import (
    FACTS,
    PART_KEYS,
    check_keys,
    check_texts,
    fail,
    is_learned,
    kind_of,
    shorten,
    unread,
    warn,
)

IMAGE, VIDEO = "<image>", "<video>"
EITHER, ONLY_IMAGE = re.compile(f"({IMAGE}|{VIDEO})"), re.compile(f"({IMAGE})")
KNOWN_KEYS = KEYS | {"image", "images", "video", "videos", "system", "system_prompt"}


class Medium(NamedTuple):
    """An image or a video at its place in the text."""

    kind: str  # 'image' or 'video'; 'frame' after `video.expand_videos`
    name: str | Blob  # as the record writes it, relative to the image folder; a Blob where the record holds the image


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
    has_markup: bool = False  # a text holds `<` other than in placeholders; only such texts are examined
    warnings: tuple[RecordError, ...] = ()  # what its author may not have meant; it is learned unchanged

    @property
    def media(self) -> list[Medium]:
        """Images and videos of all turns, in reading order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Medium)]

    @property
    def texts(self) -> list[str]:
        """The texts of all turns, in reading order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, str)]

    def map_texts(self, change: Callable[[str], str]) -> "Record":
        """The record with every text of its turns changed."""

        def parts(turn: Turn) -> tuple:
            return tuple([change(part) if isinstance(part, str) else part for part in turn.parts])

        return replace(self, turns=tuple([turn._replace(parts=parts(turn)) for turn in self.turns]))


def parse_record(raw: object, source: str) -> Record:
    """Check a decoded JSON value and turn it into a `Record`. `raw` is not modified.

    Raises:
        RecordError: the record can't be used; the message begins with `source`.
    """
    if not isinstance(raw, dict):
        fail(source, "record_type", f"a record must be an object, this is {kind_of(raw)}")
    return parse_turns(raw, turns_of(raw, source), source)


def parse_turns(raw: dict, turns: list[RawTurn], source: str) -> Record:
    """As `parse_record`, with the conversation already taken from `raw`."""
    warnings: list[RecordError] = []
    parsed = [_message(turn, number, source, warnings) for number, turn in enumerate(turns, 1)]
    system = _system(raw, parsed, source, warnings)
    if parsed[0][0] == "system":
        parsed = parsed[1:]
    _check_order([role for role, _, _ in parsed], source)
    images, videos = _names(raw, "image", source), _names(raw, "video", source)
    extra = {key: value for key, value in raw.items() if key not in KNOWN_KEYS}
    if not extra.keys() <= FACTS:
        own = any(isinstance(part, Medium) for _, parts, _ in parsed for part in parts)
        if not check_keys(extra, bool(images or videos) or own, source, warnings):
            parsed = [(role, parts, False) for role, parts, _ in parsed]
    parsed, has_markup = _fill_placeholders(parsed, images, videos, extra.get("objects"), source, warnings)
    turns = tuple([Turn(role, tuple(parts), learned) for role, parts, learned in parsed])
    return Record(turns, source, system, extra, has_markup, tuple(warnings))


def _message(turn: RawTurn, number: int, source: str, warnings: list[RecordError]) -> tuple[str, list, bool]:
    """One raw turn as (role, parts, learned); parts are strings or `Medium`s."""
    role, content = turn.role, turn.content
    learned = is_learned(turn.rest, role, number, source, warnings) if turn.rest else role == "assistant"
    if isinstance(content, str):
        return role, [content if content.isascii() else clean(content, f"turn {number}", source)], learned
    if isinstance(content, list) and turn.has_parts:
        return role, [_part(part, role, f"turn {number}", source, warnings) for part in content], learned
    fail(source, "turn_content", f"the text of turn {number} is {kind_of(content)}")


def clean(text: str, where: str, source: str) -> str:
    """The text itself.

    Raises:
        RecordError: it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        fail(source, "unicode", f"{where} holds half of a surrogate pair ({code}), which is no character")
    return text


def _part(part: object, role: str, where: str, source: str, warnings: list[RecordError]) -> "str | Medium | _Text":
    """One part of a list content: {"type": "text" | "image" | "image_url" | "video", ...}."""
    if isinstance(part, str):
        return _Text(clean(part, where, source))
    kind = part.get("type") if isinstance(part, dict) else None
    for key in part.keys() - PART_KEYS if kind else ():
        if part[key]:
            warn(warnings, source, unread(key), f"{where} has a part with {key!r}, which nothing reads")
    if kind == "text" and isinstance(part.get("text"), str):
        return _Text(clean(part["text"], where, source))
    if kind in ("image", "image_url", "video", "video_url"):
        if role != "user":
            fail(source, "media_role", f"{where} ({role}) holds a {kind}")
        kind = kind.removesuffix("_url")
        value = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key) is not None), None)
        value = value.get("url") if isinstance(value, dict) else value
        if value is None:
            return IMAGE if kind == "image" else VIDEO  # named by the record's own list
        return Medium(kind, _name(value, f"a part of {where}", source))
    fail(source, "turn_part", f"{where} has a part that is neither text, image nor video: {shorten(str(part))}")


class _Text(str):
    """A text part of a list content; `<image>` in it is text, since images have their own parts."""


def _system(raw: dict, parsed: list[tuple[str, list, bool]], source: str, warnings: list[RecordError]) -> str | None:
    """The record's own system message; None means that of the template."""
    places = [number for number, message in enumerate(parsed, 1) if message[0] == "system"]
    if places and places != [1]:
        fail(source, "turn_order", f"turn {places[-1]} is a system turn")
    given = [raw[key] for key in ("system", "system_prompt") if raw.get(key) is not None]
    own = [text for text in given if not isinstance(text, str) or text.strip()]
    if len(own) + len(places) > 1:
        fail(source, "system_twice", "several system messages")
    if own:
        if not isinstance(own[0], str):
            fail(source, "system_type", f"'system' is {kind_of(own[0])}")
        return clean(own[0], "'system'", source)
    if not places:
        return None
    text = "".join(parsed[0][1])
    if not text.strip():
        warn(warnings, source, "empty_system", "an empty system turn takes the template's message away")
    return text


def _check_order(roles: list[str], source: str) -> None:
    for number, role in enumerate(roles, 1):
        expected = "user" if number % 2 else "assistant"
        if role != expected:
            problem = f"turn {number} (system not counted) is the {role}'s, expected the {expected}'s"
            fail(source, "turn_order", problem)
    if not roles or roles[-1] == "user":
        fail(source, "no_answer", "the last turn is the user's: nothing to learn" if roles else "no turns")


def _names(raw: dict, kind: str, source: str) -> list[str | Blob]:
    """The record's own list of images or videos."""
    present = [key for key in (kind, kind + "s") if raw.get(key) is not None]
    if len(present) > 1:
        fail(source, "media_twice", f"both '{kind}' and '{kind}s'")
    if not present:
        return []
    value = raw[present[0]]
    return [_name(name, f"'{present[0]}'", source) for name in (value if isinstance(value, list) else [value])]


def _name(value: Any, where: str, source: str) -> str | Blob:
    """A name as the record writes it; a data URL, and what a table holds, as the bytes."""
    if isinstance(value, Blob):
        return value
    if not isinstance(value, str) or not value.strip():
        fail(source, "media_name", f"{where} holds {kind_of(value) if value != '' else 'an empty name'}")
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        try:
            content = base64.b64decode(data if head.endswith(";base64") else "?", validate=True)
        except ValueError:
            fail(source, "media_name", f"{where} holds a data URL that isn't whole base64 ({head[:40]})")
        return Blob(f"{where} of line {source.rpartition(':')[2]}", content)
    return value if value.isascii() else clean(value, where, source)


def _fill_placeholders(
    parsed: list, images: list, videos: list, objects: object, source: str, warnings: list[RecordError]
) -> tuple[list, bool]:
    """Replace the placeholders in the user's turns by the named media.

    Args:
        objects: the record's "objects", with which others fill `<bbox>`; None without.

    Returns:
        The turns, and whether a text holds `<` other than in placeholders.
    """
    names = {IMAGE: iter(images), VIDEO: iter(videos)}
    counts = {IMAGE: 0, VIDEO: 0}
    own = {"image": 0, "video": 0}  # media that are parts of the content, with their names
    # Without a video, `<video>` is text (an HTML element). `<image>` never is: forgetting the image is too common.
    pattern = EITHER if videos else ONLY_IMAGE
    filled, marked, learns, emptied = [], [], False, False
    for number, (role, parts, learned) in enumerate(parsed, 1):
        if role == "assistant":
            text = "".join(parts)
            if learned and (not text or text.isspace()):
                learned, emptied = False, True
                warn(warnings, source, "empty_answer", f"turn {number} is an empty answer", "it isn't learned")
            learns = learns or learned
            if "<" in text:
                marked.append((number, role, text, False))
            filled.append((role, [text], learned))
            continue
        pieces = []
        for part in parts:
            if isinstance(part, Medium):
                own[part.kind] += 1
                pieces.append(part)
                continue
            if "<" not in part:
                pieces += [str(part)] if part else []
                continue
            if isinstance(part, _Text) or "<" in part.replace(IMAGE, ""):
                marked.append((number, role, part, isinstance(part, _Text)))
            for piece in [part] if isinstance(part, _Text) else pattern.split(part):
                if piece in counts and not isinstance(piece, _Text):
                    counts[piece] += 1
                    name = next(names[piece], None)
                    pieces.append(Medium(piece.strip("<>"), name) if name is not None else piece)
                elif piece:
                    pieces.append(str(piece))
        filled.append((role, pieces, False))
    if not learns and emptied:
        fail(source, "empty_answer", "its answers are empty")
    if not learns:
        fail(source, "no_answer", "no answer is learned, each has loss false or weight 0", "remove the record")
    in_front = _count_media(filled, images, videos, counts, own, source)
    if marked:
        check_texts(marked, in_front, objects, source, warnings)
    return filled, bool(marked)


def _count_media(filled: list, images: list, videos: list, counts: dict, own: dict, source: str) -> bool:
    """Compare placeholders with names; returns whether a medium without placeholder was put before the first turn."""
    in_front = False
    for placeholder, given in ((IMAGE, images), (VIDEO, videos)):
        kind = placeholder.strip("<>")
        if counts[placeholder] == 0 and len(given) == 1 and not own[kind]:
            role, pieces, learned = filled[0]
            filled[0] = (role, [Medium(kind, given[0]), "\n", *pieces], learned)
            in_front = True
        elif counts[placeholder] != len(given):
            ending = "" if len(given) == 1 else "s"
            found = f"{counts[placeholder]} {placeholder} in the user's turns"
            fail(source, f"{kind}_count", f"{found}, but {len(given)} {kind}{ending} given by '{kind}'")
    return in_front


def expand_videos(record: Record, num_frames: Sequence[int]) -> Record:
    """The record with each video replaced by its frames, a line of text for each, as in the official code.

        Frame-1: <image>\\nFrame-2: <image>\\n...

    Args:
        num_frames: of each of the record's videos, in order.
    """
    if not any(medium.kind == "video" for medium in record.media):
        return record
    counts = iter(num_frames)
    turns = []
    for turn in record.turns:
        parts: list[str | Medium] = []
        for part in turn.parts:
            if not isinstance(part, Medium) or part.kind != "video":
                parts.append(part)
                continue
            for number in range(next(counts)):
                parts += [f"{chr(10) if number else ''}Frame-{number + 1}: ", Medium("frame", part.name)]
        turns.append(turn._replace(parts=tuple(parts)))
    return replace(record, turns=tuple(turns))
