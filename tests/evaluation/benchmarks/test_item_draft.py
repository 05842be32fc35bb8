import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.datasets.images.media import ImageFolder
from xtuner_plugins.evaluation.benchmarks.item_draft import Draft, build, lettered, shortened, text_of, texts_of
from xtuner_plugins.evaluation.benchmarks.kinds import KINDS


def test_names_lose_their_folders_one_by_one():
    assert shortened("data/coco/a.jpg") == ["data/coco/a.jpg", "coco/a.jpg", "a.jpg"]
    assert shortened("a.jpg") == ["a.jpg"]


def test_the_first_name_that_is_there_is_taken(tmp_path, put):
    put("b.png")
    item = build(Draft("1", "?", ["x"], [["a.png", "b.png"]]), KINDS["own"], None, ImageFolder(tmp_path), "own.jsonl:3")
    assert item.question.paths == (str(tmp_path / "b.png"),) and item.question.images == ("a.png",)
    assert item.place == "own.jsonl:3"


def test_rows_without_id_are_called_by_their_place(tmp_path):
    folder = ImageFolder(tmp_path)
    names = [
        build(Draft("", "?", ["x"]), KINDS["own"], None, folder, at).question.id
        for at in ("a.jsonl:3", "a.json: entry 4")
    ]
    assert names == ["line 3", "entry 4"]


def test_values():
    assert (
        text_of({"a": 3}, "a", "") == "3"
        and texts_of({"a": ["x", 1]}, "a", "") == ["x", "1"]
        and texts_of({}, "a", "") == []
    )
    for value in (None, " ", True, [1]):
        with pytest.raises(RecordError, match="^own:1: no 'a'"):
            text_of({"a": value}, "a", "own:1")
    with pytest.raises(RecordError, match="27 choices; there may be 26"):
        lettered("x" * 27, "own:1")
