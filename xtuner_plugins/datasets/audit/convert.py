"""Conversion of a whole file of another trainer's records (`records.kinds`) to this project's jsonl.

What is written is what training makes of the record that was read: each line is parsed again and must give the same
turns, or it is left out with a complaint. Records that are ours already are copied.
"""

import base64
import binascii
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..cache import get_cache_dir
from ..errors import MediaError, RecordError, SettingError
from ..images.media import ImageFolder, image_size
from ..records.boxes import normalize_boxes
from ..records.compressed import is_compressed
from ..records.index import SequentialReader, parse_json, scan
from ..records.kinds import (
    BY_CONVERT,
    BY_NAME,
    DATA_URL,
    ELSEWHERE,
    MEDIA_NAMES,
    media_names,
    part_names,
    recognize,
)
from ..records.opening import open_records
from ..records.pairs import parse_pair
from ..records.parquet import write_image
from ..records.records import IMAGE, VIDEO, Medium, Record, parse_record
from ..records.rewrites import TURN_KEYS
from .dataset_info import Columns, find_columns
from .output import write_lines

OWN_KINDS = ("messages", "llava")  # of ours: copied
OWN_KEYS = {*TURN_KEYS, *MEDIA_NAMES, "system", "system_prompt", "objects", "boxes"}


@dataclass
class Converted:
    """Summary of a conversion.

    Attributes:
        num_read, num_written: records.
        kinds: records of each kind, '' for unknown ones.
        num_images: different images that were inside records and are files now.
        columns: how a dataset_info.json names the columns; None without one.
        complaints: one per record that was left out.
        reasons: the complaints by reason.
    """

    num_read: int = 0
    num_written: int = 0
    kinds: Counter = field(default_factory=Counter)
    num_images: int = 0
    columns: Columns | None = None
    complaints: list[str] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    kind: str | None = None,
    image_folder: str | os.PathLike | None = None,
    info: str | os.PathLike | None = None,
    begin: Callable[[int], None] = lambda total: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Converted:
    """Write a file of records as jsonl. Records that training would refuse are left out, with a complaint.

    Args:
        source: json or jsonl, compressed or not.
        out: the jsonl to write, whole or not at all; it stays as it is where no record can be written.
        kind: a name of `KINDS`; None recognizes each record.
        image_folder: what names in records are relative to; images inside records are written there. None: names are
            absolute or relative to the file's folder.
        info: a dataset_info.json of LLaMA-Factory that names columns and tags; None: the one beside `source`, where it
            lists this file.
        begin, progress: called once with the number of records, and with the number done since the last call.

    Raises:
        SettingError: an unknown kind, one that isn't converted, files that can't be used, or images inside records
            without a folder for them.
        RecordError: a JSON array that is cut off.
    """
    if kind is not None and kind not in BY_NAME:
        raise SettingError("from", f"the kind {kind!r} is unknown", f"known are {', '.join(BY_NAME)}")
    if kind is not None and BY_NAME[kind].reading == ELSEWHERE:
        raise SettingError("from", f"{kind} isn't converted", BY_NAME[kind].remedy)
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise SettingError("out", f"{out} is the file that is read", "name another file to write")
    packed = source.is_file() and is_compressed(str(source))
    index = open_records(source, get_cache_dir()) if packed else scan(source)
    job = Job(source.parent, image_folder, kind, find_columns(source, info))
    begin(len(index))

    def rows() -> Iterator[str]:
        with SequentialReader(index) as reader:
            for row in range(len(index)):
                place = index.source(row)
                job.result.num_read += 1
                try:
                    line = job.convert(parse_json(reader.read(row), place), place)
                except RecordError as error:
                    job.result.complaints.append(str(error))
                    job.result.reasons[error.reason] += 1
                else:
                    job.result.num_written += 1
                    yield line
                progress(1)

    write_lines(out, rows())
    job.result.num_images = len(job.written)
    return job.result


class Job:
    """One conversion: what holds for all its records.

    Args:
        base: the folder of the file that is read.
        image_folder, kind: as `convert` has them.
        columns: how a dataset_info.json names the columns; None without one.
    """

    def __init__(
        self,
        base: Path,
        image_folder: str | os.PathLike | None = None,
        kind: str | None = None,
        columns: Columns | None = None,
    ):
        self.kind, self.columns, self.result = kind, columns, Converted(columns=columns)
        self.parse = parse_pair if columns is not None and columns.is_ranking else parse_record
        self.directory = None if image_folder is None else Path(image_folder)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        self.folder = ImageFolder(image_folder, base)
        self.written: set[str] = set()

    def convert(self, raw: object, place: str) -> str:
        """The line of a record.

        Raises:
            RecordError: it can't be used.
        """
        if self.columns is not None:
            raw = self.columns.rename(raw, place)
        kind = recognize(raw)
        name = kind.name if kind else ""
        self.result.kinds[name] += 1
        if self.kind not in (None, name):
            raise RecordError("kind", f"{name or 'no known kind'}, not {self.kind}", "leave --from out", place)
        if kind is not None and kind.reading == BY_CONVERT:
            raw = self._write_images(raw, place)
        if self.columns is not None and self.columns.is_ranking:
            parse_pair(raw, place)
            return _dump(raw)
        record = self.parse(raw, place)
        if name in OWN_KINDS or kind is not None and kind.reading == BY_CONVERT and recognize(raw).name in OWN_KINDS:
            return _dump(raw)
        try:
            record = normalize_boxes(record, lambda number: image_size(self.folder.resolve(record.media[number].name)))
        except MediaError as error:
            raise error.in_record(place) from None
        written = to_raw(record)
        if meaning(normalize_boxes(parse_record(written, place))) != meaning(record):
            raise RecordError("convert", "it can't be written otherwise without a change", "correct it by hand", place)
        return _dump(written)

    def _write_images(self, raw: dict, place: str) -> dict:
        """The record with names of files in place of images."""

        def write(name: object) -> object:
            if not isinstance(name, str) or not name.startswith(DATA_URL):
                return name
            if self.directory is None:
                remedy = "name a folder for the images with --image-folder"
                raise SettingError("image_folder", "the record holds an image itself", remedy, place)
            written = write_image(decode_data_url(name, place), self.directory, place)
            self.written.add(written)
            return written

        out = dict(raw)
        for key in MEDIA_NAMES:
            if key in raw:
                out[key] = [write(name) for name in raw[key]] if isinstance(raw[key], list) else write(raw[key])
        for key, (_, text_key) in TURN_KEYS.items():
            if isinstance(raw.get(key), list):
                out[key] = [_with_parts(turn, text_key, write) for turn in raw[key]]
        if any(name.startswith(DATA_URL) for name in media_names(out)):
            raise RecordError("convert", "an image at a place that isn't read", "write it as an image_url", place)
        return out


def decode_data_url(url: str, place: str) -> bytes:
    """The bytes of a data URL in base64.

    Raises:
        RecordError: it isn't one, or is damaged.
    """
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RecordError("data_url", f"{head[:60]!r} isn't data:image/...;base64,", "write the image in base64", place)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RecordError("data_url", "its base64 is damaged", "write the image again", place) from None


def to_raw(record: Record) -> dict:
    """A record of ours that gives the same turns.

    `conversations`, unless a text holds a placeholder as text: then `messages` with parts.
    """
    out = {key: value for key, value in record.extra.items() if key not in OWN_KEYS}
    empty_system = record.system is not None and not record.system.strip()  # as a key it would be the template's
    if record.system is not None and not empty_system:
        out["system"] = record.system
    texts = [part for turn in record.turns for part in turn.parts if turn.role == "user" and isinstance(part, str)]
    if any(IMAGE in text or VIDEO in text for text in texts):
        messages = [_turn(turn, "role", "content", turn.role, _parts) for turn in record.turns]
        if empty_system:
            messages.insert(0, {"role": "system", "content": record.system})
        return out | {"messages": messages}
    for kind in ("image", "video"):
        names = [medium.name for medium in record.media if medium.kind == kind]
        if names:
            out[kind] = names[0] if len(names) == 1 else names
    roles = {"user": "human", "assistant": "gpt"}
    turns = [_turn(turn, "from", "value", roles[turn.role], _text) for turn in record.turns]
    if empty_system:
        turns.insert(0, {"from": "system", "value": record.system})
    return out | {"conversations": turns}


def _turn(turn, role_key: str, text_key: str, role: str, write: Callable) -> dict:
    out = {role_key: role, text_key: write(turn.parts)}
    silent = turn.role == "assistant" and not turn.supervised and turn.text.strip()
    return out | {"loss": False} if silent else out


def _text(parts: tuple) -> str:
    return "".join(part if isinstance(part, str) else f"<{part.kind}>" for part in parts)


def _parts(parts: tuple) -> list[dict] | str:
    if len(parts) == 1 and isinstance(parts[0], str) and IMAGE not in parts[0] and VIDEO not in parts[0]:
        return parts[0]
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind, part.kind: part.name}
        for part in parts
    ]


def meaning(record: Record) -> tuple:
    """What training makes of a record: system message and turns, neighboring texts joined."""
    turns = []
    for turn in record.turns:
        parts: list[str | Medium] = []
        for part in turn.parts:
            if parts and isinstance(part, str) and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        turns.append((turn.role, tuple(parts), turn.supervised))
    return record.system, tuple(turns)


def _with_parts(turn: object, text_key: str, write: Callable[[object], object]) -> object:
    """A turn with other names of the media in its parts."""
    content = turn.get(text_key) if isinstance(turn, dict) else None
    return {**turn, text_key: [_rename(part, write) for part in content]} if isinstance(content, list) else turn


def _rename(part: object, write: Callable[[object], object]) -> object:
    if not isinstance(part, dict):
        return part
    new = {key: write(name) for key, name in part_names(part)}
    return part | {
        key: {**part[key], "url": name} if isinstance(part[key], dict) else name for key, name in new.items()
    }


def _dump(raw: dict) -> str:
    """A line of jsonl; characters that UTF-8 can't write stay escaped."""
    text = json.dumps(raw, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(raw)
    return text + "\n"
