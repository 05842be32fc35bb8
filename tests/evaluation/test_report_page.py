"""The page of an evaluation: what it counts, which answers it shows, and that texts stay texts."""

import re

import pytest
from PIL import Image

from xtuner_plugins.evaluation import report_page
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.report_page import TILES, breakdown, tiles_name, worst, write_report
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question

FOUND = {
    "metric": "exact_match",
    "headline": "accuracy",
    "score": 25.0,
    "interval": (10.0, 40.0),
    "num_answered": 4,
    "num_left_out": 1,
    "figures": {"accuracy": 25.0},
    "left_out": ["own.jsonl:9: no answer"],
}
RESULTS = {
    "model": {"model": "exports/<mine>", "weights": "0123456789abcdef"},
    "preprocessing": {"max_tiles": 6, "template": "internvl2_5"},
    "settings": {"dtype": "float32", "limit": None},
    "datasets": {"own": FOUND, "other": {**FOUND, "num_left_out": 0, "left_out": []}},
}


@pytest.fixture()
def rows(tmp_path):
    Image.new("RGB", (336, 224), "white").save(path := tmp_path / "a.png")

    def row(dataset, name, answer, score, tiles):
        images = ((), ()) if tiles == () else (("a.png",), (str(path),))
        return Row(dataset, Item(Question(name, "Which <b>?", *images), ("red", "rot")), answer, score, tiles)

    return [
        row("own", "a", "<script>alert(1)</script>", 0.0, ((3, 2, 1),)),
        row("own", "b", "red", 1.0, ((3, 2, 1),)),
        row("own", "c", "[[0, 0, 500, 500]]", 0.4, ((1, 1, 0),)),
        row("other", "d", "", 0.0, ()),
    ]


def test_breakdowns(rows):
    assert [tiles_name(row) for row in rows] == ["5-7", "5-7", "1", "0"]
    assert breakdown(rows, TILES, lambda row: row.num_tiles) == [
        ("0", {"other": (0.0, 1)}),
        ("1", {"own": (40.0, 1)}),
        ("5-7", {"own": (50.0, 2)}),
    ]


def test_the_page(rows, tmp_path):
    write_report(tmp_path / "report.html", RESULTS, rows)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('<div class="card" data-dataset=') == 3 and "exports/&lt;mine&gt;" in text
    assert "<script>alert" not in text and "Which &lt;b&gt;?" in text
    assert "3 x 2 tiles + thumbnail" in text and "3 x 2 个图块和缩略图" in text and "red | rot" in text
    assert "own.jsonl:9: no answer" in text and "10.0 to 40.0" in text
    assert len(re.search(r"const images = \[(.*)\]", text)[1].split(",")) == 2  # with boxes, and without
    assert "http" not in text.replace("data:image", ""), "loads nothing"


def test_the_worst_of_each_data_set(rows, monkeypatch):
    monkeypatch.setattr(report_page, "MOST_CARDS", 2)
    assert [row.item.question.id for row in worst(rows, ["own", "other"])] == ["a", "d"]


def test_an_image_that_is_gone(rows, tmp_path):
    (tmp_path / "a.png").unlink()
    write_report(tmp_path / "report.html", RESULTS, rows)
    assert "const images = []" in (tmp_path / "report.html").read_text(encoding="utf-8")
