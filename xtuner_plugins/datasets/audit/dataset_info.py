"""LLaMA-Factory's dataset_info.json: the columns and tags of a file.

    {"mine": {"file_name": "mine.json", "formatting": "sharegpt",
              "columns": {"messages": "dialog", "images": "pictures"},
              "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "q", "assistant_tag": "a"}}}

Without "columns" LLaMA-Factory's defaults hold; otherwise it reads the named columns only. A record with another key
that is read here is refused, since the two projects would make different conversations of it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import RecordError, SettingError

NAME = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT = {"messages": "conversations"}
OPTIONAL = ("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag")
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OTHERWISE_READ = (
    "image images video videos system system_prompt history instruction input output query response objects"
    " conversation conversations messages chosen rejected"
).split()  # keys that have a meaning here
OUR_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}


@dataclass(frozen=True)
class Columns:
    """An entry of a dataset_info.json.

    Attributes:
        place: the file and the entry's name.
        is_alpaca: else sharegpt.
        names: LLaMA-Factory's name of a column -> the record's key.
        tags: of sharegpt.
        is_ranking: preference pairs.
    """

    place: str
    is_alpaca: bool
    names: dict[str, str]
    tags: dict[str, str]
    is_ranking: bool

    def rename(self, raw: object, source: str) -> object:
        """A record with the keys that this project reads; what is no object is returned as it is.

        Raises:
            RecordError: a column is missing, or one that is read here isn't named in the entry.
        """
        if not isinstance(raw, dict):
            return raw
        taken = {column: raw[key] for column, key in self.names.items() if raw.get(key) is not None}
        rest = {key: value for key, value in raw.items() if key not in self.names.values()}
        clash = next(
            (key for key in ("image", "images", "video", "videos", "system", "history") if rest.get(key)), None
        )
        if clash is not None:
            _refuse(source, f"{clash!r} isn't among the columns of {self.place}", "add it there, or remove it")
        if "kto_tag" in taken:
            _refuse(source, "a record for KTO: its answer may be a bad one", "train preference pairs instead")
        out = {**rest, **{key: taken[key] for key in ("system", "tools", "images", "videos", "audios") if key in taken}}
        if self.is_ranking:
            out |= {key: self._message(taken[key]) for key in ("chosen", "rejected") if key in taken}
        if self.is_alpaca:
            ours = {**ALPACA, "history": "history"}
            return out | {ours[column]: value for column, value in taken.items() if column in ours}
        if "messages" not in taken:
            _refuse(source, f"no {self.names['messages']!r}, which {self.place} names", "correct the entry")
        turns = taken["messages"]
        return out | {"messages": [self._message(turn) for turn in turns] if isinstance(turns, list) else turns}

    def _message(self, turn: object) -> object:
        """A turn with our keys and roles; what is no turn of the entry is returned as it is, to be refused."""
        role_key, text_key = self.tags["role_tag"], self.tags["content_tag"]
        if self.is_alpaca or not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            return turn
        rest = {key: value for key, value in turn.items() if key not in (role_key, text_key)}
        ours = {self.tags[tag]: role for tag, role in OUR_ROLES.items()}
        role = turn[role_key]
        known = ours.get(role) if isinstance(role, str) else None
        return rest | {"role": known or f"{role} (a tag of {NAME})", "content": turn[text_key]}


def find_columns(source: Path, info: str | os.PathLike | None) -> Columns | None:
    """The entry about a file, in `info` or in the dataset_info.json beside it; None without.

    Raises:
        SettingError: `info` isn't there, is none, or doesn't list the file.
    """
    path = Path(info) if info is not None else source.with_name(NAME)
    if info is None and not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError("info", f"{path} can't be read ({error.strerror})", f"name a {NAME}") from None
    except (ValueError, RecursionError) as error:
        raise SettingError("info", f"{path}: no JSON ({str(error)[:100]})", f"correct {NAME}") from None
    named = entries.items() if isinstance(entries, dict) else ()
    found = [(name, entry) for name, entry in named if isinstance(entry, dict) and _is_about(entry, path, source)]
    if not found:
        if info is None:
            return None
        raise SettingError(
            "info", f"{path} has no entry with file_name {source.name!r}", "add it, or name another file"
        )
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise SettingError("info", f"{path} has several entries about {source.name}: {names}", "keep one of them")
    return _columns(f"{path}:{found[0][0]}", found[0][1])


def _is_about(entry: dict, path: Path, source: Path) -> bool:
    name = entry.get("file_name")
    return (
        isinstance(name, str) and "\0" not in name and os.path.realpath(path.parent / name) == os.path.realpath(source)
    )


def _columns(place: str, entry: dict) -> Columns:
    formatting, given, tags = entry.get("formatting", "alpaca"), entry.get("columns") or {}, entry.get("tags") or {}
    if formatting not in ("alpaca", "sharegpt"):
        raise SettingError("info", f"{place}: formatting is {formatting!r}", "it is 'alpaca' or 'sharegpt'")
    required = ALPACA if formatting == "alpaca" else SHAREGPT
    for what, values, known in (("columns", given, {*required, *OPTIONAL}), ("tags", tags, set(TAGS))):
        if not isinstance(values, dict) or not all(isinstance(value, str | None) for value in values.values()):
            raise SettingError("info", f"{place}: {what} is {str(values)[:60]!r}", "give names as texts")
        if unknown := sorted(set(values) - known):
            raise SettingError("info", f"{place}: {what} has {unknown[0]!r}", f"known are {', '.join(sorted(known))}")
    given = {name: key for name, key in given.items() if key}
    names = given or required
    if "messages" not in names and formatting == "sharegpt":
        raise SettingError("info", f"{place}: columns names no 'messages'", "add it")
    return Columns(
        place, formatting == "alpaca", names, TAGS | {k: v for k, v in tags.items() if v}, bool(entry.get("ranking"))
    )


def _refuse(source: str, problem: str, remedy: str) -> NoReturn:
    raise RecordError("columns", problem, remedy, source)
