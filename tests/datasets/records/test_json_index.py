"""Where records lie: against json itself, over files of every shape."""

import json
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.records import json_index
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.errors import RecordError, SettingError, SourceError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(alphabet='a"\\[]{},:\n é𝄞', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\,]', max_size=3), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=4), min_size=1, max_size=8)


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_records(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=RECORDS,
    newline=st.sampled_from([None, "\n", "\r\n", "\n\n", "\n \t\n  "]),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    mark=st.booleans(),
)
def test_files_come_back_as_json_reads_them(records, newline, indent, ascii_only, mark, tmp_path, monkeypatch):
    """Arrays, and lines that `newline` parts, whatever the file's name says, and behind a byte order mark."""
    monkeypatch.setattr(json_index, "BLOCK", 7)  # every kind of state crosses a border
    if newline is None:
        text = f"\n {json.dumps(records, indent=indent, ensure_ascii=ascii_only)}\n"
    else:
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        text = newline.join(lines) + newline * ascii_only
    found = read(tmp_path / ("a.jsonl" if newline is None else "a.json"), text := "\ufeff" * mark + text)
    assert [found.parse(row) for row in range(len(found))] == records
    before = [text.encode()[:start] for start in found.spans[0]]
    assert found.spans[2].tolist() == [part.count(b"\n") + 1 for part in before]


BROKEN = [
    *((nothing, "no records") for nothing in (b"", b" \n \n", b"[]")),
    (b"PK\x03\x04....", "neither .* begins with b'PK"),
    (b'[{"a": 1},\n{"a": "x', ":2: the JSON array is broken: Unterminated"),
    (b'[{"a": 1},\n{"a": 2}', ":2: .*isn't closed"),
    (b'[{"a": 1},\n]', ":2: .*Expecting value"),
    (b'[{"a": 1}\n\n{"a": 2}]', ":3: .*no comma between records"),
    (b'[{"a": 1},\n{"a": tru}]', ":2: .*Expecting value"),
    (b'[{"a": 1}]\n[{"a": 2}]', "something follows it"),
    (b"[" * 100_000, "recursion"),
]


def test_broken_files_are_refused(tmp_path, monkeypatch):
    for block in (7, 1 << 24):
        monkeypatch.setattr(json_index, "BLOCK", block)
        for content, words in BROKEN:
            with pytest.raises((SettingError, RecordError), match=f"bad.json:?.*{words}"):
                read(tmp_path / "bad.json", content)
    monkeypatch.setattr(json_index, "MOST_BYTES", 109)  # a huge record is refused before it is decoded
    found = read(tmp_path / "a.jsonl", "".join(json.dumps({"a": "x" * length}) + "\n" for length in (100, 101)))
    assert found.parse(0) == {"a": "x" * 100}
    with pytest.raises(RecordError, match="a.jsonl:2: 110 bytes; at most 109") as refused:
        found.parse(1)
    assert refused.value.reason == "record_bytes"


def test_a_file_that_changes_or_goes_stops_the_run(tmp_path, data_base, write_data, qa):
    """A cut, an edit of the same length, a line more, and a file that has gone, under the policy that skips."""
    path = tmp_path / "a.jsonl"
    for edit in (b'{"a": 1}\n', b'{"a": 1}\n{"a": 3}\n', b'{"a": 1}\n{"a": 2}\n{"a": 3}\n', None):
        found = read(path, b'{"a": 1}\n{"a": 2}\n')
        path.unlink()
        if edit:
            path.write_bytes(edit)
        with pytest.raises(SourceError, match=r"a.jsonl: (the file has changed|can't be read any more)"):
            found.parse(1)
    dataset = MultimodalDataset(data_base, data := write_data([qa(), qa()]), on_bad_sample="skip")
    os.utime(data, ns=(1, 1))
    with pytest.raises(SourceError, match="data.jsonl: the file has changed"):
        dataset[0]


def test_a_large_file_is_indexed_in_windows_once(tmp_path, monkeypatch):
    monkeypatch.setattr(json_index, "BLOCK", 1 << 16)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 2000}] * 5000))
    tracemalloc.start()
    found, peak = open_records(path), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 5000 and peak < 3_000_000 < os.path.getsize(path) / 3
    monkeypatch.setattr(json_index, "_scan_array", None)
    again = open_records(path)
    assert again.parse(4999) == {"text": "x" * 2000} and again.fingerprint() == found.fingerprint()
