"""A folder of results is read as it was written, and damaged ones are named."""

import json

import pytest
from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.measured import measure
from xtuner_plugins.evaluation.metrics import find_metric
from xtuner_plugins.evaluation.results import items_hash, read_results, rows_of, summary, versions, write_results
from xtuner_plugins.inference.batch_answers import Lengths
from xtuner_plugins.inference.questions import Question, Unusable

LENGTHS = Lengths(DynamicTiling(max_tiles=6, tile_size=112), "equal", 16)


@pytest.fixture()
def measured(tmp_path):
    Image.new("RGB", (336, 224)).save(tmp_path / "a.png")
    question = Question("a", "Which color? 颜色", ("a.png",), (str(tmp_path / "a.png"),))
    gone = Question("b", "And this?", ("b.png",), (str(tmp_path / "b.png"),))
    items = [
        Item(question, ("red", "rot"), {"category": "color"}),
        Item(gone, ("x",)),
        Item(Question("c", "?"), ("y",)),
    ]
    return measure("own", find_metric("exact_match"), items, {"a": "Rot", "b": "y", "c": "y"})


def test_written_and_read(measured, tmp_path):
    rows = rows_of(measured, LENGTHS)
    assert [row.tiles for row in rows] == [((3, 2, 1),), None, ()] and [row.num_tiles for row in rows] == [7, None, 0]
    said = summary(measured, [Unusable("d", "own.jsonl:4: no answer")], {"path": "own.jsonl", "hash": "1"})
    assert said["score"] == pytest.approx(200 / 3) and said["num_left_out"] == 1
    results = {"model": {"model": "m"}, "versions": versions(), "datasets": {"own": said}}
    write_results(tmp_path, results, rows)
    again, read = read_results(tmp_path)
    assert read == rows and again["datasets"]["own"]["figures"] == measured.figures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "items.jsonl", "results.json"]


def test_the_hash_is_of_what_is_asked_and_expected(measured):
    items = measured.items
    others = [
        items[:2],
        [*items[:2], Item(Question("c", "Why?"), ("y",))],
        [*items[:2], Item(Question("c", "?"), ("z",))],
        [*items[:2], Item(Question("c", "?", ("c.png",), ("/x/c.png",)), ("y",))],
        [*items[:2], Item(Question("c", "?"), ("y",), {"category": "z"})],
    ]
    assert len({items_hash(each) for each in [items, *others]}) == 6
    moved = Item(Question("b", "And this?", ("b.png",), ("/elsewhere/b.png",)), ("x",), place="other.jsonl:1")
    assert items_hash([items[0], moved, items[2]]) == items_hash(items)


def test_what_is_no_folder_of_results_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no results.json; give the --out folder of a finished"):
        read_results(tmp_path)
    for content in ("{", "[]", json.dumps({"model": {}, "datasets": {"a": {}}})):
        (tmp_path / "results.json").write_text(content)
        (tmp_path / "items.jsonl").write_text("")
        with pytest.raises(ValueError, match=r"can't be read .* run tools/evaluate.py again"):
            read_results(tmp_path)
