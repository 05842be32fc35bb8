from xtuner_plugins.data_names import is_pattern, names_data, names_images, split_archive


def test_what_is_there(tmp_path):
    for name in ("a.jsonl", "x.zip", "b{1}.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    names = ("a.jsonl", "folder.tar", "*.parquet", "{0..9}.tar", "b{1}.json", "none.jsonl")
    assert [names_data(f"{tmp_path}/{name}") for name in names] == [True] * 5 + [False]
    assert not is_pattern(f"{tmp_path}/b{{1}}.json")
    names = ("folder.tar", "x.zip", "x.zip/train", "a.jsonl", "none", "none.zip/train")
    assert [names_images(f"{tmp_path}/{name}") for name in names] == [True] * 3 + [False] * 3


def test_an_archive_and_a_folder_in_it(tmp_path):
    (tmp_path / "x.ZIP").touch()
    assert split_archive(f"{tmp_path}/x.ZIP/a/b/") == (f"{tmp_path}/x.ZIP", "a/b")
    assert split_archive(f"{tmp_path}/x.ZIP") == (f"{tmp_path}/x.ZIP", "")
    assert split_archive("x.zip") == split_archive("") == split_archive("/") == ("", "")
