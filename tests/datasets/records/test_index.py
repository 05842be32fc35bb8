"""Where records lie: against json itself, over files of every shape."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.datasets.records import index as index_module
from xtuner_plugins.datasets.records.index import SequentialReader, scan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(alphabet='a"\\[]{},:\n é𝄞', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\,]', max_size=3), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=4), min_size=1, max_size=8)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of seven bytes: every kind of state crosses a border."""
    monkeypatch.setattr(index_module, "BLOCK", 7)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_arrays_come_back_as_json_reads_them(records, indent, ascii_only, tmp_path, small_blocks):
    path = tmp_path / "a.json"
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    path.write_text("\n " + text + "\n", encoding="utf-8")
    found = scan(path)
    assert [found.parse(i) for i in range(len(found))] == records
    for i in range(len(found)):
        before = path.read_bytes()[: found.starts[i]]
        assert found.lines[i] == before.count(b"\n") + 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, newline=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]), last=st.booleans())
def test_lines_come_back_as_json_reads_them(records, newline, last, tmp_path, small_blocks):
    path = tmp_path / "a.jsonl"
    text = newline.join(json.dumps(record) for record in records) + (newline if last else "")
    path.write_bytes(text.encode())
    found = scan(path)
    assert [found.parse(i) for i in range(len(found))] == records
    step = newline.count("\n")
    assert found.lines.tolist() == [1 + i * step for i in range(len(records))]


def test_kind_is_decided_by_content_not_by_name(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "b.jsonl").write_text('[{"a": 1},\n{"a": 2}]')
    for name in ("a.json", "b.jsonl"):
        found = scan(tmp_path / name)
        assert [found.parse(i)["a"] for i in (0, 1)] == [1, 2]
        assert found.lines.tolist() == [1, 2]


def test_byte_order_mark_is_skipped(tmp_path):
    for text in ('[{"a": 1}]', '{"a": 1}\n'):
        (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert scan(tmp_path / "a").parse(0) == {"a": 1}


@pytest.mark.parametrize(
    "content, error, words",
    [
        (b"", SettingError, "empty"),
        (b" \n \n", SettingError, "empty"),
        (b"[]", SettingError, "no records"),
        (b"hello", SettingError, "neither a JSON array nor JSON lines"),
        (b"\xff\xfe[\x00", SettingError, "UTF-16"),
        (b'[{"a": 1},\n{"a": "x', RecordError, ":2: the JSON array isn't closed"),
        (b'[{"a": 1},\n{"a": 2}', RecordError, ":2: the JSON array isn't closed"),
        (b'[{"a": 1},,{"a": 2}]', RecordError, ":1: an empty place"),
        (b'[{"a": 1},\n]', RecordError, "an empty place"),
        (b'[{"a": 1}]\n[{"a": 2}]', RecordError, "something follows"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, error, words):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(error, match=words):
        scan(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "content, words",
    [
        (gzip.compress(b'{"a": 1}', mtime=0), "compressed .gzip."),  # the time would become part of the test's id
        (b"PK\x03\x04....", "a zip archive"),
        (b"PAR1....", "Parquet"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 211\n",
            "git-lfs .the file itself wasn't fetched",
        ),
        (json.dumps({"data": [{"a": 1}, {"a": 2}]}, indent=1).encode(), "one JSON object over several lines"),
        (json.dumps({"a": 1}, indent=1).encode(), "one JSON object over several lines"),
        (b'{"data": [\n{"a": 1},\n{"a": 2}]}', "one JSON object over several lines"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, words):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(SettingError, match=f"bad.json:1: .*{words}"):
        scan(tmp_path / "bad.json")
    with pytest.raises(SettingError, match=":1: is a folder"):
        scan(tmp_path)


@pytest.mark.parametrize("first", [b'{"a": [', b'{"a": 1,', b"{"])
def test_a_broken_first_record_is_only_a_record(tmp_path, first):
    (tmp_path / "bad.jsonl").write_bytes(first + b'\n{"a": 2}\n')
    assert len(scan(tmp_path / "bad.jsonl")) == 2


@pytest.mark.parametrize(
    "line, words",
    [
        (b'{"a": ', "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    ],
)
def test_broken_records_name_their_line(tmp_path, line, words):
    (tmp_path / "bad.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    found = scan(tmp_path / "bad.jsonl")
    assert found.parse(0) == {"a": 1}
    with pytest.raises(RecordError, match=f"bad.jsonl:2: .*{words}"):
        found.parse(1)


def test_missing_and_shortened_files_say_so(tmp_path):
    with pytest.raises(SettingError, match="isn't there"):
        scan(tmp_path / "none.json")
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    found = scan(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(RecordError, match="a.jsonl:2: .*shorter"):
        found.read(1)
    path.unlink()
    with pytest.raises(RecordError, match="can't be read any more"):
        found.read(0)


@pytest.mark.parametrize("ahead", [1, 30, 1 << 18])
@pytest.mark.parametrize("indent", [None, 1])
def test_reading_one_after_another_gives_the_same_bytes(tmp_path, monkeypatch, ahead, indent):
    monkeypatch.setattr(index_module, "READ_AHEAD", ahead)
    records = [{"text": "x" * (number % 50)} for number in range(60)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records, indent=indent) if indent else "\n".join(map(json.dumps, records)))
    found = scan(path)
    with SequentialReader(found) as reader:
        for order in (range(60), range(59, -1, -1), [3, 50, 4, 4]):
            assert [reader.read(index) for index in order] == [found.read(index) for index in order]


def test_reading_one_after_another_says_what_reading_says(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    found = scan(path)
    path.write_text('{"a": 1}\n')
    with SequentialReader(found) as reader:
        assert reader.read(0) == b'{"a": 1}'
        with pytest.raises(RecordError, match="a.jsonl:2: .*shorter"):
            reader.read(1)
    path.unlink()
    with SequentialReader(found) as reader, pytest.raises(RecordError, match="can't be read any more"):
        reader.read(0)


def test_index_is_three_numbers_a_record(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 1000)
    found = scan(tmp_path / "a.jsonl")
    assert all(part.dtype == np.int64 and len(part) == 1000 for part in (found.starts, found.lengths, found.lines))
