"""From an annotation file's JSON to a checked conversation.

A raw record (LLaVA style; extra keys are allowed and kept):

    {"id": "7", "image": "coco/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat color is the bus?"},
        {"from": "gpt",   "value": "Red."}]}

or with `messages`, whose contents are strings or lists of parts:

    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "And this?"}]},
        {"role": "assistant", "content": "A dog."}]}

`image` (or `images`) is a name, a list of names, or absent; `video` (or `videos`) likewise. The placeholders in the
user's turns are filled in order; a single image without a placeholder is put before the first user turn. Any other
disagreement is an error: nothing is guessed. `record_checks` lists conventions of other projects that are refused or
warned about.

An answer with `"loss": false` or `"weight": 0` is part of the conversation but isn't learned, nor is its end token. An
answer that is empty or white space isn't learned either (the official code and LLaVA's train its end token, and so a
model that says nothing); a record with no other answer is left out, as `empty_answer`.

With `"system": ""` the template's own message is used, as in XTuner and LLaMA-Factory. An empty system *turn* is an
empty system message, as in the official code and in transformers' chat templates: `chat` builds the same prompt where
the model's `system_message` is "".
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from ..errors import RecordError
from .kinds import rewrite
from .record_checks import READ_ELSEWHERE, check_keys, check_texts, fail, is_learned, shorten, warn

IMAGE, VIDEO = "<image>", "<video>"
EITHER, ONLY_IMAGE = re.compile(f"({IMAGE}|{VIDEO})"), re.compile(f"({IMAGE})")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ROLES |= dict.fromkeys(("bot", "chatgpt", "bard", "bing", "model"), "assistant")  # ShareGPT's; in any case
FORMATS = {"conversations": ("from", "value"), "messages": ("role", "content")}
KINDS = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true/false"}
KINDS[type(None)] = "null"
KNOWN_KEYS = {"conversations", "messages", "image", "images", "video", "videos", "system"}


class Medium(NamedTuple):
    """An image or a video at its place in the text."""

    kind: str  # 'image' or 'video'; 'frame' after `video.expand_videos`
    name: str  # as the record writes it, relative to the image folder


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


def parse_record(raw: object, source: str) -> Record:
    """Check a decoded JSON value and turn it into a `Record`. `raw` is not modified.

    A record is taken for that of another trainer (`kinds`) only where it isn't one of ours, which costs ours nothing.

    Raises:
        RecordError: the record can't be used; the message begins with `source`.
    """
    try:
        return _parse(raw, source)
    except RecordError:
        rewritten = rewrite(raw, source) if isinstance(raw, dict) else None
        if rewritten is None:
            raise
    return _parse(rewritten, source)


def _parse(raw: object, source: str) -> Record:
    if not isinstance(raw, dict):
        fail(
            source,
            "record_type",
            f"a record must be an object, this is {_kind(raw)}",
            'write {"image": ..., "conversations": [...]}',
        )
    messages, role_key, content_key = _message_list(raw, source)
    parsed = [_message(message, number, role_key, content_key, source) for number, message in enumerate(messages, 1)]
    warnings: list[RecordError] = []
    system = _system(raw, parsed, source, warnings)
    if parsed[0][0] == "system":
        parsed = parsed[1:]
    _check_order([role for role, _, _ in parsed], source)
    images, videos = _names(raw, "image", source), _names(raw, "video", source)
    extra = {key: value for key, value in raw.items() if key not in KNOWN_KEYS}
    if not READ_ELSEWHERE.isdisjoint(extra):
        parts = [part for _, parts, _ in parsed for part in parts]
        check_keys(extra, bool(images or videos) or any(isinstance(part, Medium) for part in parts), source, warnings)
    parsed, has_markup = _fill_placeholders(parsed, images, videos, extra.get("objects"), source, warnings)
    turns = tuple([Turn(role, tuple(parts), learned) for role, parts, learned in parsed])
    return Record(turns, source, system, extra, has_markup, tuple(warnings))


def _kind(value: object) -> str:
    return KINDS.get(type(value), type(value).__name__)


def _message_list(raw: dict, source: str) -> tuple[list, str, str]:
    present = [name for name in FORMATS if name in raw]
    if not present:
        fail(
            source,
            "no_conversations",
            f"no conversations; the record has the keys {sorted(raw)!r}"[:300],
            'give "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
        )
    if len(present) > 1:
        fail(source, "two_formats", "both 'conversations' and 'messages'", "keep one of them")
    messages = raw[present[0]]
    if not isinstance(messages, list):
        fail(source, "conversations_type", f"'{present[0]}' is {_kind(messages)}", "make it a list of turns")
    if not messages:
        fail(source, "no_conversations", f"'{present[0]}' is empty", "remove the record or give it turns")
    return messages, *FORMATS[present[0]]


def _message(message: object, number: int, role_key: str, content_key: str, source: str) -> tuple[str, list, bool]:
    """One raw turn as (role, parts, learned); parts are strings or `Medium`s."""
    if not isinstance(message, dict):
        fail(source, "turn_type", f"turn {number} is {_kind(message)}", "make it an object")
    if role_key not in message or content_key not in message:
        key = role_key if role_key not in message else content_key
        fail(
            source,
            "turn_keys",
            f"turn {number} has no '{key}', its keys are {sorted(message)!r}"[:300],
            f"give every turn '{role_key}' and '{content_key}'",
        )
    name = message[role_key]
    role = (ROLES.get(name) or ROLES.get(name.lower())) if isinstance(name, str) else None
    if role is None:
        fail(
            source,
            "turn_role",
            f"turn {number} is from {shorten(str(name))}",
            f"known roles are {', '.join(ROLES)}",
        )
    content = message[content_key]
    learned = role == "assistant" if len(message) == 2 else is_learned(message, role, number, source)
    if isinstance(content, str):
        return role, [content if content.isascii() else _clean(content, f"turn {number}", source)], learned
    if isinstance(content, list) and role_key == "role":
        return role, [_part(part, role, f"turn {number}", source) for part in content], learned
    fail(source, "turn_content", f"the text of turn {number} is {_kind(content)}", "make it a string")


def _clean(text: str, where: str, source: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        fail(
            source,
            "unicode",
            f"{where} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no character",
            "write the file as UTF-8, or whole pairs",
        )
    return text


def _part(part: object, role: str, where: str, source: str) -> "str | Medium | _Text":
    """One part of a list content: {"type": "text" | "image" | "image_url" | "video", ...}."""
    if isinstance(part, str):
        return _Text(_clean(part, where, source))
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return _Text(_clean(part["text"], where, source))
    if kind in ("image", "image_url", "video", "video_url"):
        if role != "user":
            fail(source, "media_role", f"{where} ({role}) holds a {kind}", "images stand in the user's turns")
        kind = kind.removesuffix("_url")
        value = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key) is not None), None)
        if isinstance(value, dict):
            value = value.get("url")
        if value is None:
            return IMAGE if kind == "image" else VIDEO  # named by the record's own list
        if not isinstance(value, str):
            fail(source, "media_name", f"{where} names a {kind} by {_kind(value)}", "name its file")
        if value.startswith("data:"):
            _refuse_data_url(where, source)
        if not value.isascii():
            _clean(value, f"a name in {where}", source)
        return Medium(kind, value)
    fail(
        source,
        "turn_part",
        f"{where} has a part that is neither text, image nor video: {shorten(str(part))}",
        'write {"type": "text", "text": ...} or {"type": "image", "image": ...}',
    )


class _Text(str):
    """A text part of a list content; `<image>` in it is text, since images have their own parts."""


def _system(raw: dict, parsed: list[tuple[str, list, bool]], source: str, warnings: list[RecordError]) -> str | None:
    """The record's own system message; None means that of the template."""
    places = [number for number, message in enumerate(parsed, 1) if message[0] == "system"]
    if places and places != [1]:
        fail(source, "turn_order", f"turn {places[-1]} is a system turn", "a system turn comes once, and first")
    own = raw.get("system")
    if own is None or isinstance(own, str) and not own.strip():
        if not places:
            return None
        text = "".join(parsed[0][1])
        if not text.strip():
            remedy = "remove the turn for the template's own message; chat needs system_message = '' otherwise"
            warn(warnings, source, "empty_system", "an empty system turn takes the template's message away", remedy)
        return text
    if not isinstance(own, str):
        fail(source, "system_type", f"'system' is {_kind(own)}", "make it a string")
    if places:
        fail(source, "system_twice", "both a 'system' key and a system turn", "keep one of them")
    return _clean(own, "'system'", source)


def _check_order(roles: list[str], source: str) -> None:
    for number, role in enumerate(roles, 1):
        expected = "user" if number % 2 else "assistant"
        if role != expected:
            fail(
                source,
                "turn_order",
                f"turn {number} (system not counted) is the {role}'s, expected the {expected}'s",
                "user and assistant speak in turn, the user first",
            )
    if not roles or roles[-1] == "user":
        fail(
            source,
            "no_answer",
            "the last turn is the user's: nothing to learn" if roles else "no turns",
            "end with an assistant's answer",
        )


def _names(raw: dict, kind: str, source: str) -> list[str]:
    """The record's own list of images or videos."""
    present = [key for key in (kind, kind + "s") if raw.get(key) is not None]
    if len(present) > 1:
        fail(source, "media_twice", f"both '{kind}' and '{kind}s'", "keep one of them")
    if not present:
        return []
    value = raw[present[0]]
    names = [value] if isinstance(value, str) else value
    for name in names if isinstance(names, list) else (None,):
        if not isinstance(name, str):
            fail(
                source,
                "media_name",
                f"'{present[0]}' is neither a file name nor a list of them",
                f'write "{kind}": "folder/file"',
            )
        if not name.strip():
            fail(source, "media_name", f"'{present[0]}' holds an empty name", f"name the {kind} or remove the key")
        if name.startswith("data:"):
            _refuse_data_url(f"'{present[0]}'", source)
        if not name.isascii():
            _clean(name, f"'{present[0]}'", source)
    return names


def _refuse_data_url(where: str, source: str) -> NoReturn:
    """Refuse an image inside the record; `kinds.rewrite` then names the command that writes it out."""
    fail(source, "convert", f"{where} holds an image itself, not its name", "run: python tools/prepare_data.py convert")


def _fill_placeholders(
    parsed: list, images: list[str], videos: list[str], objects: object, source: str, warnings: list[RecordError]
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
        fail(source, "empty_answer", "its answers are empty", "give it an answer or remove it")
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
            fail(
                source,
                f"{kind}_count",
                f"{counts[placeholder]} {placeholder} in the user's turns, but "
                f"{len(given)} {kind}{'' if len(given) == 1 else 's'} given by '{kind}'",
                f"name one {kind} for each {placeholder}",
            )
    return in_front
