"""Conversations of other trainers, read live: one table of names says how each is written.

    LLaVA, official InternVL   {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
    OpenAI, ms-swift           {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    ShareGPT                   other roles (`bot`, `USER` ...), `from`/`value` or `role`/`content` in either list
    ms-swift                   {"conversation": [{"human": q, "assistant": a}]}
    The Cauldron, FineVision   {"texts": [{"user": q, "assistant": a}]}, all images in front if no `<image>` says where
    ms-swift                   {"query": q, "response": a, "history": [[q, a], ...]}
    LLaMA-Factory (alpaca)     {"instruction": q, "input": more, "output": a, "history": [[q, a], ...]}

Roles are read in any case. Answers in `history` are learned, as in those projects. Preference pairs: see `pairs`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .record_checks import fail, kind_of, shorten

ROLES = {"user": "human user", "assistant": "gpt assistant bot chatgpt bard bing model", "system": "system"}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names.split()}
LISTS = ("conversations", "messages", "conversation", "texts")
LISTS_OF_PAIRS = LISTS[2:]
PAIRS = {("query", "response"): "", ("instruction", "output"): "input"}  # question and answer: joined to the question
KEYS = frozenset((*LISTS, *(key for pair, more in PAIRS.items() for key in (*pair, more)), "history"))
TURN_KEYS = (("from", "value"), ("role", "content"))


class RawTurn(NamedTuple):
    """A turn as it is written."""

    role: str  # 'user', 'assistant' or 'system'
    content: Any  # its text, or with `role` and `content` a list of parts
    has_parts: bool = False  # whether a list is allowed
    rest: Mapping[str, Any] = {}  # its other keys


def renamed(raw: object, columns: Mapping[str, str]) -> object:
    """A record whose keys are called otherwise, by `columns`: names here -> names there."""
    if not columns or not isinstance(raw, dict):
        return raw
    theirs = set(columns.values())
    kept = {key: value for key, value in raw.items() if key not in theirs and key not in columns}
    return kept | {ours: raw[name] for ours, name in columns.items() if name in raw}


def turns_of(raw: dict, source: str) -> list[RawTurn]:
    """The conversation of a record; raises `RecordError` for none, several, or one of another form."""
    lists = [name for name in LISTS if name in raw]
    if len(lists) > 1:
        fail(source, "two_formats", f"both {lists[0]!r} and {lists[1]!r}")
    if lists:
        return _of_list(lists[0], raw, source)
    question, answer = next((pair for pair in PAIRS if all(key in raw for key in pair)), ("", ""))
    if not question:
        if any(key.startswith("rejected") for key in raw):
            remedy = "train it with PreferenceDataset (docs/preference.md)"
            fail(source, "no_conversations", "a preference pair", remedy)
        fail(source, "no_conversations", f"no conversation; the record has the keys {sorted(raw)!r}"[:300])
    asked = joined(raw[question], raw.get(PAIRS[question, answer]), source)
    return [*history(raw.get("history"), source), RawTurn("user", asked), RawTurn("assistant", raw[answer])]


def joined(question: object, more: object, source: str) -> object:
    """A question and its `input`, whichever isn't empty, on lines of their own; `RecordError` for what is no text."""
    if not isinstance(more, str | None) or (more and not isinstance(question, str | None)):
        fail(source, "turn_content", f"'input' or the question is {kind_of(more)}")
    return "\n".join(filter(None, (question, more))) if more else question


def history(pairs: object, source: str) -> list[RawTurn]:
    """The turns of [[question, answer], ...]; none for null, a `RecordError` for anything else."""
    if not isinstance(pairs, list | None) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs or ()):
        fail(source, "history", f"'history' is {shorten(str(pairs))}")
    return [RawTurn(role, text) for pair in pairs or () for role, text in zip(("user", "assistant"), pair, strict=True)]


def _of_list(name: str, raw: dict, source: str) -> list[RawTurn]:
    turns = raw[name]
    if not isinstance(turns, list) or not turns:
        reason = "no_conversations" if turns == [] else "conversations_type"
        fail(source, reason, f"{name!r} is {'empty' if turns == [] else kind_of(turns)}")
    if name not in LISTS_OF_PAIRS:
        return [_turn(turn, number, source) for number, turn in enumerate(turns, 1)]
    found = [turn for number, pair in enumerate(turns, 1) for turn in _of_pair(pair, number, source)]
    images, first = raw.get("images", raw.get("image")), found[0].content
    if name == "texts" and isinstance(images, list) and isinstance(first, str):
        if not any("<image>" in str(turn.content) for turn in found[::2]):
            found[0] = found[0]._replace(content="<image>\n" * len(images) + first)
    return found


def _of_pair(pair: object, number: int, source: str) -> list[RawTurn]:
    texts = {ROLE_OF.get(key): text for key, text in pair.items()} if isinstance(pair, dict) else {}
    if not {"user", "assistant"} <= set(texts):
        fail(source, "turn_keys", f"turn {number} isn't a question and an answer: {shorten(str(pair))}")
    return [RawTurn(role, texts[role]) for role in ("user", "assistant")]


def _turn(turn: object, number: int, source: str) -> RawTurn:
    if not isinstance(turn, dict):
        fail(source, "turn_type", f"turn {number} is {kind_of(turn)}")
    keys = next((keys for keys in TURN_KEYS if keys[0] in turn and keys[1] in turn), None)
    if keys is None:
        fail(source, "turn_keys", f"turn {number} has the keys {sorted(turn)!r}"[:300])
    name = turn[keys[0]]
    role = ROLE_OF.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        fail(source, "turn_role", f"turn {number} is from {shorten(str(name))}")
    rest = {key: turn[key] for key in turn if key not in keys} if len(turn) > 2 else {}
    return RawTurn(role, turn[keys[1]], keys[0] == "role", rest)
