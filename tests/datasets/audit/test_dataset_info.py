"""LLaMA-Factory's columns and tags."""

import json

import pytest

from xtuner_plugins.datasets import RecordError, SettingError
from xtuner_plugins.datasets.audit.convert import convert
from xtuner_plugins.datasets.audit.dataset_info import find_columns

SHAREGPT = {
    "file_name": "data.jsonl",
    "formatting": "sharegpt",
    "columns": {"messages": "dialog", "images": "pictures", "system": "rule"},
    "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "q", "assistant_tag": "a", "system_tag": "s"},
}
ALPACA = {
    "file_name": "data.jsonl",
    "columns": {"prompt": "ask", "query": "more", "response": "say", "history": "before"},
}
TALK = {
    "dialog": [{"who": "q", "text": "<image>a"}, {"who": "a", "text": "b"}],
    "pictures": ["x.jpg"],
    "rule": "Short.",
}


@pytest.fixture
def run(write_data, tmp_path):
    """run(entry, *records) -> (summary, the records written)."""

    def run(entry, *records):
        source, out = write_data(records), tmp_path / "out.jsonl"
        (tmp_path / "dataset_info.json").write_text(json.dumps({"other": {"file_name": "x.json"}, "mine": entry}))
        result = convert(source, out)
        assert out.exists() == (result.num_written > 0)
        return result, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return run


def test_sharegpt_under_other_names(run, tmp_path):
    result, (written,) = run(SHAREGPT, TALK)
    assert written == {
        "system": "Short.",
        "images": ["x.jpg"],
        "messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}],
    }
    assert result.columns.place == f"{tmp_path}/dataset_info.json:mine" and not result.complaints


def test_alpaca_under_other_names(run):
    record = {"id": 7, "ask": "a", "more": "b", "say": "c", "before": [["d", "e"]]}
    _, (written,) = run(ALPACA, record)
    texts = [turn["value"] for turn in written["conversations"]]
    assert texts == ["d", "e", "a\nb", "c"] and written["id"] == 7


def test_defaults_without_columns(run):
    _, (written,) = run({"file_name": "data.jsonl"}, {"instruction": "a", "input": "", "output": "c"})
    assert [turn["value"] for turn in written["conversations"]] == ["a", "c"]


def test_preference_pairs(run):
    entry = {**SHAREGPT, "ranking": True, "columns": {"messages": "dialog", "chosen": "good", "rejected": "bad"}}
    record = {
        "dialog": [{"who": "q", "text": "a"}],
        "good": {"who": "a", "text": "b"},
        "bad": {"who": "a", "text": "c"},
    }
    _, (written,) = run(entry, record)
    assert written["chosen"] == {"role": "assistant", "content": "b"} and written["rejected"]["content"] == "c"


@pytest.mark.parametrize(
    "record, problem",
    [
        ({**TALK, "images": ["y.jpg"]}, "'images' isn't among the columns"),
        ({**TALK, "history": [["a", "b"]]}, "'history' isn't among the columns"),
        ({"pictures": ["x.jpg"]}, "no 'dialog', which"),
        ({**TALK, "dialog": [{"who": "observation", "text": "a"}]}, "a tag of dataset_info.json"),
        ({**TALK, "dialog": [{"who": ["q"], "text": "a"}]}, "turn 1 is from"),
        ({**TALK, "dialog": 3}, "'messages' is a number"),
    ],
    ids=str,
)
def test_records_that_would_become_something_else_are_left_out(run, record, problem):
    result, written = run(SHAREGPT, record)
    assert not written and problem in result.complaints[0] and "data.jsonl:1: " in result.complaints[0]


def test_kto_is_left_out(run):
    entry = {**SHAREGPT, "columns": {**SHAREGPT["columns"], "kto_tag": "good"}}
    result, written = run(entry, {**TALK, "good": False}, TALK)
    assert len(written) == 1 and "KTO" in result.complaints[0]


def test_a_file_that_is_not_listed_or_listed_otherwise(write_data, tmp_path):
    source = tmp_path / "data.jsonl"
    write_data([TALK])
    assert find_columns(source, None) is None
    info = tmp_path / "elsewhere.json"
    with pytest.raises(SettingError, match="can't be read"):
        find_columns(source, info)
    for text, words in {
        "{": "no JSON",
        "[]": "no entry with file_name",
        json.dumps({"a": SHAREGPT, "b": SHAREGPT}): "several entries about data.jsonl: a, b",
        json.dumps({"a": {**SHAREGPT, "formatting": "csv"}}): "formatting is 'csv'",
        json.dumps({"a": {**SHAREGPT, "tags": {"x": "y"}}}): "tags has 'x'; known are",
        json.dumps({"a": {**SHAREGPT, "columns": []}}): "",
        json.dumps({"a": {**SHAREGPT, "columns": {"messages": 3}}}): "columns is",
        json.dumps({"a": {**SHAREGPT, "columns": {"images": "x"}}}): "columns names no 'messages'",
    }.items():
        info.write_text(text)
        if words:
            with pytest.raises(SettingError, match=words):
                find_columns(source, info)
        else:
            assert find_columns(source, info).names == {"messages": "conversations"}
    info.write_text(json.dumps({"a": {"file_name": "data.jsonl", "formatting": "sharegpt"}}))
    with pytest.raises(RecordError, match="f:1: no 'conversations', which .*elsewhere.json:a names"):
        find_columns(source, info).rename({"dialog": []}, "f:1")
