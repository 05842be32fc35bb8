"""One record's bytes as JSON: what isn't JSON says where and why."""

import json

import pytest

from xtuner_plugins.datasets import RecordError
from xtuner_plugins.datasets.records.record_json import ends_with_comma, parse_json


@pytest.mark.parametrize(
    "text, passes",
    [
        ('{"a": 1, "b": {"a": [{"c": 1}, {"c": 2}]}}', True),
        ('{"a": "x\\":y \\": {\\"a\\": 1}", "b" : 2}', True),
        ('{"a" : 1, "a" : 2}', False),
        ('{"a": 1, "b": [{"c": 1, "c": 1}]}', False),
        ('{"a": "\\":", "b": {"c": 1, "c": 1}}', False),
    ],
)
def test_keys_that_occur_twice(text, passes):
    if passes:
        assert parse_json(text.encode(), "f:1") == json.loads(text)
        return
    with pytest.raises(RecordError, match="occurs twice in an object") as caught:
        parse_json(text.encode(), "f:1")
    assert caught.value.reason == "json_duplicate_key"


@pytest.mark.parametrize(
    "data, reason, words",
    [
        (b'{"a": 1', "json", r"f:1: not JSON: Expecting .* \(column 8\)"),
        (b'{"a":\n }', "json", "line 2 of the record, column 2"),
        (b'{"a": 1},', "json", "a comma follows the object; remove the commas"),
        (b'{"a": "\xff"}', "encoding", "not UTF-8 .byte 0xff at column 8"),
        (b"[" * 100_000, "json", "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "json", "not JSON that can be read"),
    ],
)
def test_what_is_not_json_says_why(data, reason, words):
    with pytest.raises(RecordError, match=words) as caught:
        parse_json(data, "f:1")
    assert caught.value.reason == reason and caught.value.remedy


@pytest.mark.parametrize(
    "data, ends",
    [(b' {"a": 1} , ', True), (b'{"a": 1}', False), (b'{"a": 1,', False), (b"[1],", False), (b"{,", False)],
)
def test_an_object_and_a_comma(data, ends):
    assert ends_with_comma(data) is ends
