import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import open_benchmark


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "", "is neither .tsv, .json, .jsonl nor .txt"),
        ("a.jsonl", "", "holds no line that is a JSON object"),
        ("a.jsonl", "[1]\nnonsense", "holds no line that is a JSON object"),
        (
            "a.jsonl",
            '{"text": "?"}',
            "'question' and 'answer' or 'answers' are needed; a file of your own has the keys id",
        ),
        ("a.json", "", "is not JSON"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "the keys of its first record .none. are those of no benchmark; known in this form: chartqa"),
        ("a.json", '[{"x": 1}]', "its first record .x. are those of no benchmark"),
        (
            "a.json",
            '{"data": [3]}',
            "known in this form: chartqa, ocrbench, textvqa, docvqa, scienceqa; a file of your own",
        ),
        ("a.json", '{"a": {"b": 1}}', "those of no benchmark"),
        ("a.json", "[" * 100000, "is not JSON"),
    ],
)
def test_unknown_files_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=message):
        open_benchmark(tmp_path / name)


def test_unknown_folders_are_refused(tmp_path):
    with pytest.raises(SettingError, match="holds no files of a benchmark; name one file"):
        open_benchmark(tmp_path)
    (tmp_path / "color.txt").touch()
    (tmp_path / "coco_pope_random.json").touch()
    with pytest.raises(SettingError, match="holds files of mme and of pope; name one file"):
        open_benchmark(tmp_path)


def test_a_kind_that_does_not_fit_is_refused(write_lines):
    path = write_lines("own.jsonl", {"question": "?", "answer": "x"})
    with pytest.raises(SettingError, match="can't be read as 'mme': its first record .*; name it: --kind, one of own"):
        open_benchmark(path, kind="mme")
    with pytest.raises(SettingError, match="kind 'mmme' is unknown; it is one of mmbench, mmstar"):
        open_benchmark(path, kind="mmme")
    assert open_benchmark(path, kind="own").reason == "as asked"


def test_a_broken_first_line_does_not_hide_the_kind(write_lines):
    found = open_benchmark(write_lines("own.jsonl", "{", {"question": "?", "answer": "x"}))
    assert found.kind == "own" and len(found.items) == len(found.unusable) == 1


def test_a_json_file_may_be_in_one_line(tmp_path):
    (tmp_path / "a.json").write_text(
        '{"data": [{"questionId": 1, "question": "?", "image": "a.png", "answers": ["x"]}]}'
    )
    with pytest.raises(
        SettingError, match="none of its 1 questions can be used; the first: .*entry 1: image .* isn't there"
    ):
        open_benchmark(tmp_path / "a.json")
