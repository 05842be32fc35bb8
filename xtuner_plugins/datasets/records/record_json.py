"""The bytes of one record as a JSON value; keys that occur twice, which JSON readers accept, are refused."""

import json

from ..errors import RecordError

COMMA_REMEDY = "remove the commas between the lines, or put [ before the first and ] after the last"


def parse_json(data: bytes, source: str) -> object:
    """Decode one record's bytes.

    Raises:
        RecordError: not UTF-8, not JSON, a key twice in an object, or nested too deeply.
    """
    try:
        value = json.loads(data.decode("utf-8"))
        if not _has_plain_keys(data, value):
            json.loads(data.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
        return value
    except KeyError as error:
        raise RecordError(
            "json_duplicate_key", f"the key {error.args[0]!r} occurs twice in an object", "keep one of them", source
        ) from None
    except UnicodeDecodeError as error:
        raise RecordError(
            "encoding",
            f"not UTF-8 (byte 0x{data[error.start]:02x} at column {error.start + 1})",
            "save the file as UTF-8",
            source,
        ) from None
    except json.JSONDecodeError as error:
        if ends_with_comma(data):
            raise RecordError("json", "a comma follows the object", COMMA_REMEDY, source) from None
        line = f"line {error.lineno} of the record, " if error.lineno > 1 else ""
        raise RecordError(
            "json",
            f"not JSON: {error.msg} ({line}column {error.colno})",
            "one JSON object per line, or one JSON array per file",
            source,
        ) from None
    except RecursionError:
        raise RecordError("json", "nested too deeply", "one JSON object per record", source) from None
    except ValueError as error:  # Python's limit on the digits of an integer
        raise RecordError("json", f"not JSON that can be read: {error}", "shorten it", source) from None


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON.

    Raises:
        KeyError: a key that occurs twice; Python's reader would silently keep the last.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def _has_plain_keys(data: bytes, value: object) -> bool:
    """Whether the bytes alone prove that no key occurs twice: as many `":` as keys, and `{` as objects.

    Nearly every record passes, at a tenth of the cost of decoding it; the others are decoded once more.
    """
    if value.__class__ is not dict:
        return False
    keys, objects = len(value), 1
    for part in value.values():
        if part.__class__ is list and part and part[0].__class__ is dict:
            if any(turn.__class__ is not dict for turn in part):
                return False
            keys, objects = keys + sum(map(len, part)), objects + len(part)
    return data.count(b'":') == keys and data.count(b"{") == objects


def ends_with_comma(data: bytes) -> bool:
    """Whether this is one JSON object and a comma, as in an array without its brackets."""
    text = data.strip()
    if not (text.startswith(b"{") and text.endswith(b",")):
        return False
    try:
        json.loads(text[:-1].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return True
