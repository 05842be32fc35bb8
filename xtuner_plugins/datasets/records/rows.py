"""From a row of a table to a raw record, as JSON would give it.

Tables have a column for every key, so a key that a record lacks is null, and is left out here. Forms of turns:

    conversations, messages   a list of structs, as in JSON; a struct of lists (`Sequence` of datasets); or JSON text
    texts                     [{"user": ..., "assistant": ...}, ...] (The Cauldron, FineVision), whose images all stand
                              in front of the first question, since their texts have no placeholders
"""

from ..errors import RecordError
from .record_json import parse_json
from .records import IMAGE

TURNS = ("conversations", "messages")


def to_record(row: dict, num_images: int, source: str) -> dict:
    """The raw record of a row.

    Args:
        row: its columns, with names in place of images.
        num_images: how many images it names.
        source: `file:row`.

    Raises:
        RecordError: a text that is no JSON, or `texts` of another form.
    """
    record = _without_nulls(row)
    for key in TURNS:
        turns = record.get(key)
        if isinstance(turns, str):
            record[key] = parse_json(turns.encode("utf-8", "surrogatepass"), source)
        elif isinstance(turns, dict):
            record[key] = _transpose(turns, key, source)
    texts = record.pop("texts", None)
    if texts is not None:
        if any(key in record for key in TURNS):
            raise RecordError("two_formats", "both 'texts' and 'conversations' or 'messages'", "keep one", source)
        record["conversations"] = _turns_of(texts, num_images, source)
    return record


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _transpose(turns: dict, key: str, source: str) -> list[dict]:
    """A struct of lists of one length as a list of structs."""
    lengths = {len(column) if isinstance(column, list) else -1 for column in turns.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise RecordError("conversations_type", f"'{key}' holds lists of several lengths", "make it a list", source)
    return [
        {name: value for name, value in zip(turns, each, strict=True) if value is not None}
        for each in zip(*turns.values(), strict=True)
    ]


def _turns_of(texts: object, num_images: int, source: str) -> list[dict]:
    if isinstance(texts, dict):
        texts = _transpose(texts, "texts", source)
    turns = []
    for number, pair in enumerate(texts if isinstance(texts, list) else [None], 1):
        if not isinstance(pair, dict) or not all(isinstance(pair.get(key), str) for key in ("user", "assistant")):
            problem = f"'texts' has no text for user and assistant at place {number}"
            raise RecordError("turn_keys", problem, 'write [{"user": ..., "assistant": ...}, ...]', source)
        turns += [{"from": "human", "value": pair["user"]}, {"from": "gpt", "value": pair["assistant"]}]
    if turns and not any(IMAGE in turn["value"] for turn in turns[::2]):
        turns[0]["value"] = f"{IMAGE}\n" * num_images + turns[0]["value"]
    return turns
