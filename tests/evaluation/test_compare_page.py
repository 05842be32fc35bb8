"""The table and the page of a comparison."""

import re

from PIL import Image

from xtuner_plugins.evaluation.compare import as_json, compare
from xtuner_plugins.evaluation.compare_page import comparison_table, p_text, write_comparison
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question

RESULTS = {
    "model": {"model": "exports/mine", "weights": "0123456789abcdef"},
    "preprocessing": {"max_tiles": 6},
    "settings": {"dtype": "float32"},
    "datasets": {"own": {"hash": "1", "metric": "exact_match"}},
}


def rows(path, tiles, *answers):
    question = [Question(f"q{n}", "Which?", ("a.png",), (str(path),)) for n in range(len(answers))]
    items = [Item(each, ("red",)) for each in question]
    return [Row("own", item, text, float(text == "red"), (tiles,)) for item, text in zip(items, answers, strict=True)]


def test_table_and_page(tmp_path):
    Image.new("RGB", (336, 224), "white").save(tmp_path / "a.png")
    one = rows(tmp_path / "a.png", (1, 1, 0), "red", "<i>", "blue", "red")
    other = rows(tmp_path / "a.png", (3, 2, 1), "red", "red", "red", "green")
    comparisons = compare((RESULTS, one), (RESULTS, other))
    found = as_json(comparisons)
    head, line = comparison_table(found).splitlines()
    assert head.split()[:5] == ["data", "set", "metric", "A", "B"]
    assert line.split()[:6] == ["own", "exact_match:", "accuracy", "50.0", "75.0", "+25.0"]
    assert line.split()[-4:] == ["1.000", "1", "2", "4"]
    write_comparison(tmp_path / "c.html", [RESULTS, RESULTS], comparisons, found)
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert re.findall(r'data-tiles="(.*?)" data-kind="(.)"', text) == [("1", "b"), ("1", "b"), ("1", "a")]
    assert "&lt;i&gt;" in text and "<i>" not in text and "up to 6 tiles" in text and "每图最多 6 个图块" in text


def test_p_values():
    assert [p_text(each) for each in (None, 0.0001, 0.0316)] == ["-", "< 0.001", "0.032"]
