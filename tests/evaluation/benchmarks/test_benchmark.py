import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import open_benchmark


def test_a_file_without_anything_usable_is_refused_with_its_first_complaint(write_lines):
    path = write_lines("own.jsonl", {"question": "?", "answer": "x", "choices": ["a"]})
    with pytest.raises(
        SettingError, match="none of its 1 questions can be used; the first: .*own.jsonl:1 .*none of the letters A"
    ):
        open_benchmark(path)


def test_a_missing_file_or_folder(tmp_path, write_lines):
    with pytest.raises(SettingError, match="isn't there; correct the path"):
        open_benchmark(tmp_path / "gone.tsv")
    with pytest.raises(SettingError, match="image folder .* isn't there"):
        open_benchmark(write_lines("own.jsonl", {"question": "?", "answer": "x"}), images=tmp_path / "gone")
