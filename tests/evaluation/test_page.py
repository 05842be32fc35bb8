"""The page: what it counts, which answers it shows, and that texts stay texts."""

import re

import pytest
from PIL import Image

from xtuner_plugins.evaluation import page
from xtuner_plugins.evaluation.compare import compare
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question

OWN = {
    "hash": "1",
    "metric": "exact_match",
    "headline": "accuracy",
    "higher_is_better": True,
    "score": 25.0,
    "interval": (10.0, 40.0),
    "num_answered": 4,
    "num_left_out": 1,
    "figures": {"accuracy": 25.0},
    "left_out": ["own.jsonl:9: no answer"],
}
ASKED = {"hash": "2", "num_answered": 1, "num_left_out": 0, "left_out": []}
RESULTS = {
    "model": {"model": "exports/<mine>", "weights": "0123456789abcdef"},
    "preprocessing": {"max_tiles": 6},
    "settings": {"dtype": "float32", "limit": 4},
    "datasets": {"own": OWN, "asked": ASKED},
}


@pytest.fixture()
def rows(tmp_path):
    Image.new("RGB", (336, 224), "white").save(path := tmp_path / "a.png")

    def row(dataset, name, answer, score, path=path):
        images = (("a.png",), (str(path),)) if path else ((), ())
        expected = () if score is None else ("red", "rot")
        return Row(dataset, Item(Question(name, "Which <b>?", *images), expected), answer, score)

    return [
        row("own", "a", "<script>alert(1)</script>", 0.0),
        row("own", "b", "red", 1.0),
        row("own", "c", "[[0, 0, 500, 500]]", 0.4),
        row("asked", "d", "only asked", None, None),
    ]


def test_one_result(rows, tmp_path, monkeypatch):
    page.write_report(tmp_path / "report.html", RESULTS, rows)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('<div class="card" data-dataset=') == 3 and "exports/&lt;mine&gt;" in text
    assert "<script>alert" not in text and "Which &lt;b&gt;?" in text and "only asked" in text
    assert "a.png, 336x224<" in text and "red | rot" in text
    assert "own.jsonl:9: no answer" in text and "10.0 to 40.0" in text and "(--limit 4)" in text
    assert len(re.search(r"const images = \[(.*)\]", text)[1].split(",")) == 2  # with boxes, and without
    assert "http" not in text.replace("data:image", ""), "loads nothing"
    (tmp_path / "a.png").unlink()
    monkeypatch.setattr(page, "MOST_CARDS", 2)
    page.write_report(tmp_path / "report.html", RESULTS, rows)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "const images = []" in text and re.findall('class="soft path">(.*?)<', text) == ["own / a", "asked / d"]


def test_a_comparison(rows, tmp_path):
    own = {**RESULTS, "datasets": {"own": OWN}}
    better = [
        Row("own", row.item, text, float(text == "red"))
        for row, text in zip(rows[:3], ("red", "x", "<i>"), strict=True)
    ]
    other = {**own, "settings": {"dtype": "bfloat16", "limit": 4}}
    page.write_comparison(tmp_path / "c.html", [own, other], compare((own, rows[:3]), (other, better)))
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert re.findall(r'data-dataset="own" data-kind="(.)"', text) == ["b", "a", "a"]
    assert "&lt;i&gt;" in text and "<i>" not in text and "settings dtype: A float32, B bfloat16" in text
    assert (
        "每图最多 6 个图块" in text and "(--limit 4)" in text and "无法判断" in text and "nothing can be said" in text
    )
