"""Which files are read, and which of their records; what becomes of them is in test_prepare.py."""

import json

import pytest

from xtuner_plugins.datasets.audit.published import RECIPES
from xtuner_plugins.datasets.audit.sources import find_sources, open_parts
from xtuner_plugins.datasets.errors import SettingError

MMPR = RECIPES["mmpr-v1.2"]


def meta(folder, **entries):
    """A release: for each entry ten records in `annotations/NAME.jsonl`; root and annotation are its author's paths."""
    (folder / "annotations").mkdir(exist_ok=True)
    for name, entry in entries.items():
        (folder / f"annotations/{name}.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(10)))
        entry.setdefault("root", f"MMPR-v1.2/images/{name}")
        entry.setdefault("annotation", f"/mnt/author/MMPR/annotations/{name}.jsonl")
    (folder / "meta.json").write_text(json.dumps(entries))
    return folder


def numbers(part):
    return [read()["n"] for _, read in part.rows()]


def test_shares_are_those_of_the_meta_file(tmp_path):
    """A fraction takes a random part in order, the same at every call; 2.5 takes all twice, and half of it."""
    meta(tmp_path, a={"length": 10}, b={"repeat_time": 0.35}, c={"repeat_time": 2.5}, d={"repeat_time": 0})
    parts, complaints = open_parts(MMPR, tmp_path)
    assert complaints == [] and [len(part) for part in parts] == [10, 3, 25, 0]
    assert [len(numbers(part)) for part in parts] == [10, 3, 25, 0]
    assert numbers(parts[0]) == list(range(10)) and numbers(parts[2])[:20] == 2 * list(range(10))
    some = numbers(parts[1])
    assert some == sorted(set(some)) == numbers(open_parts(MMPR, tmp_path / "meta.json")[0][1])
    assert [part.length for part in parts] == [10, None, None, None]


@pytest.mark.parametrize(
    "root, prefix",
    [("MMPR/images/a", "a/"), ("/mnt/x/MMPR/images/a/images/", "a/images/"), ("images", ""), ("images/a/b", "a/b/")],
)
def test_images_are_named_relative_to_their_folder(tmp_path, root, prefix):
    parts, _ = open_parts(MMPR, meta(tmp_path, a={"root": root}))
    assert parts[0].prefix == prefix


def test_entries_that_cannot_be_used(tmp_path):
    """Each costs itself alone; an annotation is never read outside of the folder."""
    meta(
        tmp_path,
        good={},
        bare={"root": "MMPR/pictures"},
        lost={"annotation": "annotations/none.jsonl"},
        out={"annotation": "/etc/passwd"},
        often={"repeat_time": "3"},
        null={"root": None},
    )
    parts, complaints = open_parts(MMPR, tmp_path)
    assert [part.path.name for part in parts] == ["good.jsonl"]
    assert [text.split(": ", 1)[1].split(";")[0] for text in complaints] == [
        "bare: root 'MMPR/pictures' has no folder 'images'",
        "lost: no annotations/none.jsonl",
        "out: no annotations/passwd",
        "often: repeat_time is '3'",
        "null: no 'root' or no 'annotation'",
    ]
    (tmp_path / "annotations/good.jsonl").unlink()
    with pytest.raises(SettingError, match=r"no annotation file of .*meta.json can be read; the first: .*unpack"):
        open_parts(MMPR, tmp_path)
    for text, problem in (("[]", "not an object of data sets"), ("{", "no JSON")):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(SettingError, match=problem):
            open_parts(MMPR, tmp_path)


def test_several_files_are_found_by_their_pattern(tmp_path):
    recipe = RECIPES["vlfeedback-parquet"]
    with pytest.raises(SettingError, match=r"holds no data/train-\*.parquet"):
        find_sources(recipe, tmp_path)
    for name in ("train-1.parquet", "train-0.parquet", "test-0.parquet"):
        (tmp_path / name).touch()
    assert [path.name for path in find_sources(recipe, tmp_path)] == ["train-0.parquet", "train-1.parquet"]
    assert find_sources(recipe, tmp_path / "train-1.parquet") == [tmp_path / "train-1.parquet"]
