import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import files


def test_a_cell_may_be_large(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("index\timage\n1\t" + "A" * 1_000_000 + "\n\n2\t\n")
    rows = list(files.read_tsv(path))
    assert [len(row.values.get("image", "")) for row in rows] == [1_000_000, 0]
    assert [row.place for row in rows] == [f"{path}:2", f"{path}:4"]


def test_a_byte_order_mark_is_no_name(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("\ufeffindex\timage\n1\t2\n", encoding="utf-8")
    assert files.tsv_columns(path) == ["index", "image"]
    assert next(files.read_tsv(path)).values == {"index": "1", "image": "2"}


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\ta\n1\t2\n")
    with pytest.raises(SettingError, match="two columns have one name"):
        list(files.read_tsv(path))


def test_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_CELL", 4)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "long"}')
    assert all(row.values is None for row in files.read_json_lines(path))
