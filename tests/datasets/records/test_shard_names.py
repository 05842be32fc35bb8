import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.datasets.records import shard_names
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.shard_names import expand, list_folder


@pytest.fixture
def touch(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).touch()
        return str(tmp_path)

    return touch


def names(files):
    return [file.rsplit("/", 1)[1] for file in files]


def test_folders_and_patterns(touch):
    folder = touch("b.parquet", "a.parquet", ".hidden.parquet", "README.md", "x{1}.parquet")
    assert names(list_folder(folder, [".parquet", ".tar"])) == ["a.parquet", "b.parquet", "x{1}.parquet"]
    assert names(expand(f"{folder}/[ab].parquet".replace("[ab]", "?"))) == ["a.parquet", "b.parquet"]
    assert names(expand(f"{folder}/{{b,a}}.parquet")) == ["b.parquet", "a.parquet"]


def test_ranges_keep_their_zeros(touch):
    folder = touch(*(f"{number:06}.tar" for number in range(12)))
    assert names(expand(f"{folder}/{{000009..000011}}.tar")) == ["000009.tar", "000010.tar", "000011.tar"]
    with pytest.raises(SettingError, match="there is no file .*000012.tar"):
        expand(f"{folder}/{{000009..000012}}.tar")
    with pytest.raises(SettingError, match="there is no file"):
        expand(f"{folder}/*.parquet")


def test_more_alternatives_than_are_read_are_refused(touch, monkeypatch):
    folder = touch(*(f"{number}.tar" for number in range(6)))
    monkeypatch.setattr(shard_names, "MOST", 6)
    assert len(expand(f"{folder}/{{0..5}}.tar")) == 6
    monkeypatch.setattr(shard_names, "MOST", 5)
    with pytest.raises(SettingError, match="its braces name more than 5 files; name them in several entries"):
        expand(f"{folder}/{{0..5}}.tar")


def test_missing_shards_and_several_splits_are_refused(touch):
    folder = touch("train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    with pytest.raises(SettingError, match="1 of the 3 shards of 'train' are missing, the first is number 1"):
        list_folder(folder, [".parquet"])
    assert len(expand(f"{folder}/*.parquet")) == 2  # whoever writes a pattern may mean a part
    touch("train-00001-of-00003.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(SettingError, match=r"several splits \(test, train\); name one of them, e.g. .*/test\*"):
        list_folder(folder, [".parquet"])


def test_folders_of_other_things(touch, tmp_path):
    with pytest.raises(SettingError, match=":1: is a folder, not an annotation file"):
        open_records(touch("a.txt"), tmp_path)
    with pytest.raises(SettingError, match=r"files of several kinds \(.parquet, .tar\)"):
        list_folder(touch("a.parquet", "b.tar"), [".parquet", ".tar"])
    with pytest.raises(SettingError, match="names .txt files"):
        open_records(f"{tmp_path}/*.txt", tmp_path)
