"""What entries of settings name, and what messages and keys take of a URL; for locks see `datasets/test_cache.py`."""

from xtuner_plugins.files import is_pattern, is_url, local_path, masked, names_data, names_images, split_zip


def test_what_is_there(tmp_path):
    for name in ("a.jsonl", "x.ZIP", "b{1}.json", "a b.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    names = ("a.jsonl", "folder.tar", "*.parquet", "b{1}.json", "none.jsonl")
    assert [names_data(f"{tmp_path}/{name}") for name in names] == [True] * 4 + [False]
    names = ("folder.tar", "x.ZIP", "x.ZIP/train", "a.jsonl", "none", "none.zip/train")
    assert [names_images(f"{tmp_path}/{name}") for name in names] == [True] * 3 + [False] * 3
    assert split_zip(f"{tmp_path}/x.ZIP/a/b/") == (f"{tmp_path}/x.ZIP", "a/b")
    assert split_zip("x.zip") == split_zip("") == split_zip("/") == ("", "")
    for url in ("s3://b/a", "HTTPS://h/a?x=1"):
        assert is_url(url) and local_path(url) == url and names_data(url) and names_images(url)
        assert not is_pattern(url + "*")
    assert not any(map(is_url, ("a.jsonl", "/a/b", "C:/a", "data:image/png;base64,//", None, 3)))
    assert names_data(f"file://{tmp_path}/a%20b.jsonl") and not names_data(f"file://{tmp_path}/none.jsonl")
    assert names_images(f"file://{tmp_path}") and not names_images(f"file://{tmp_path}/none")


def test_messages_hide_credentials():
    for text, expected in {
        "s3://key:secret@bucket/a.jpg: gone": "s3://***@bucket/a.jpg: gone",
        "s3://AKIA:abc/d+e@bucket/a.jpg": "s3://***@bucket/a.jpg",
        "at 'https://h/a.jpg?X-Amz-Signature=abc&b=c' and": "at 'https://h/a.jpg?***' and",
        "http://127.0.0.1:9000/photo@2x.jpg": "http://127.0.0.1:9000/photo@2x.jpg",
        "is it a.jpg? yes": "is it a.jpg? yes",
        "a@b.c and s3://b/x": "a@b.c and s3://b/x",
    }.items():
        assert masked(text) == expected
