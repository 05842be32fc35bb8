import json

import datasets
import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.table_files import ArrowTable, find_arrow_files

ROWS = [{"conversations": f"{number}", "image": "a.jpg"} for number in range(25)]


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=3)
    return tmp_path / "saved"


def test_rows_of_a_saved_dataset(saved, tmp_path):
    found = open_records(saved, tmp_path / "cache")
    assert [found.parse(row) for row in (0, 9, 24)] == [ROWS[row] | {"conversations": row} for row in (0, 9, 24)]
    assert found.source(24) == f"{saved}/data-00002-of-00003.arrow:8"


def test_a_selection_is_saved_as_what_was_selected(tmp_path):
    datasets.Dataset.from_list(ROWS).shuffle(seed=1).select(range(5)).save_to_disk(tmp_path / "part")
    assert len(open_records(tmp_path / "part", tmp_path / "cache")) == 5


def test_splits_are_named(tmp_path):
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "all")
    with pytest.raises(SettingError, match=r"several splits \(test, train\); name one of them: .*all/test"):
        open_records(tmp_path / "all", tmp_path / "cache")
    assert len(open_records(tmp_path / "all" / "train", tmp_path / "cache")) == 25


def test_what_is_not_whole(saved, tmp_path):
    (path,) = [saved / "data-00001-of-00003.arrow"]
    whole = path.read_bytes()
    for data in (whole[:-8], whole[:-100], b"", whole[: len(whole) // 2], bytes(8) + whole[8:]):
        path.write_bytes(data)
        with pytest.raises(SettingError, match=f"{path}: is no whole Arrow file"):
            open_records(saved, tmp_path / "cache")
    path.unlink()
    with pytest.raises(SettingError, match="is no whole Arrow file"):
        open_records(saved, tmp_path / "cache")
    for state in ("{", "{}", json.dumps({"_data_files": [{"filename": "../x.arrow"}]}), '{"_data_files": []}'):
        (saved / "state.json").write_text(state)
        with pytest.raises(SettingError, match="state.json: can't be read"):
            find_arrow_files(str(saved))


def test_a_table_is_read_without_copying_it(saved):
    table = ArrowTable(str(saved / "data-00000-of-00003.arrow"))
    import pyarrow

    before = pyarrow.total_allocated_bytes()
    read = table.read(0, ["conversations"])
    assert read.num_rows == 9 and pyarrow.total_allocated_bytes() - before < 4096
