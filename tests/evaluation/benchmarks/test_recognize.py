import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import open_benchmark


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "", "is neither .tsv nor .jsonl"),
        ("a.jsonl", "", "holds no line that is a JSON object"),
        ("a.jsonl", "[1]\nnonsense", "holds no line that is a JSON object"),
        (
            "a.jsonl",
            '{"text": "?"}',
            "'question' and 'answer', or 'conversations', are needed; a file of your own has the keys id",
        ),
        ("a.json", "[]", "holds no line that is a JSON object"),
        ("a.jsonl", "[" * 100000, "holds no line that is a JSON object"),
    ],
)
def test_unknown_files_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=message):
        open_benchmark(tmp_path / name)


def test_folders_are_refused(tmp_path):
    with pytest.raises(SettingError, match="is neither .tsv nor .jsonl"):
        open_benchmark(tmp_path)


def test_a_kind_that_does_not_fit_is_refused(write_lines):
    path = write_lines("own.jsonl", {"question": "?", "answer": "x"})
    with pytest.raises(SettingError, match="can't be read as 'pope': its first record .*; name it: --kind, one of own"):
        open_benchmark(path, kind="pope")
    with pytest.raises(SettingError, match="kind 'poppe' is unknown; it is one of mmbench, mmstar"):
        open_benchmark(path, kind="poppe")
    assert open_benchmark(path, kind="own").reason == "as asked"


def test_a_broken_first_line_does_not_hide_the_kind(write_lines):
    found = open_benchmark(write_lines("own.jsonl", "{", {"question": "?", "answer": "x"}))
    assert found.kind == "own" and len(found.items) == len(found.unusable) == 1
