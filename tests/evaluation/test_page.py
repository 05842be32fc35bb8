"""The page: what it counts, which answers it shows, and that texts stay texts."""

import base64
import io
import re

from PIL import Image

from xtuner_plugins.evaluation import page
from xtuner_plugins.evaluation.compare import compare
from xtuner_plugins.evaluation.results import Row
from xtuner_plugins.inference.questions import Question

CARD = '<div class="card">\n<p class="soft path">(.*?)<'
COUNTS = {"num_answered": 4, "num_left_out": 1, "left_out": ["own.jsonl:9: no answer"]}
OWN = {"hash": "1", "metric": "exact_match", "headline": "accuracy", "higher_is_better": True, "score": 25.0, **COUNTS}
OWN |= {"interval": (10.0, 40.0), "figures": {"accuracy": 25.0}}
RESULTS = {
    "model": {"model": "exports/<mine>", "weights": "0123456789abcdef"},
    "preprocessing": {"max_tiles": 6},
    "settings": {"dtype": "float32", "limit": 4},
    "datasets": {"own": OWN, "asked": {"hash": "2", **COUNTS, "left_out": []}},
}


def test_one_result_and_two(tmp_path, monkeypatch):
    Image.new("RGB", (672, 448), "white").save(path := tmp_path / "a.png")

    def row(dataset, name, answer, score):
        expected = () if score is None else ("red", "rot")
        return Row(dataset, Question(name, "Which <b>?", ("a.png",), (str(path),), expected), answer, score)

    def shown(write, *values):
        write(tmp_path / "page.html", *values)
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    rows = [row("own", "a", "<script>alert(1)</script>", 0.0), row("own", "b", "red", 1.0)]
    rows += [row("own", "c", "[[0, 0, 500, 500]]", 0.4), row("asked", "d", "only asked", None)]
    text = shown(page.write_report, RESULTS, rows)
    assert re.findall(CARD, text) == ["own / a", "own / c", "asked / d"], "the worst first; the right one isn't shown"
    for said in ("exports/&lt;mine&gt;", "Which &lt;b&gt;?", "only asked", "a.png, 672x448<", "red | rot"):
        assert said in text
    assert "own.jsonl:9: no answer" in text and "10.0 to 40.0" in text and "(--limit 4)" in text
    assert text.count(" 0 %<") == text.count(" 40 %<") == 1, "none of what is only asked"
    images = set(re.findall('src="data:image/jpeg;base64,(.*?)"', text))  # with boxes, and without
    assert {Image.open(io.BytesIO(base64.b64decode(each))).size for each in images} == {(360, 240)} and len(images) == 2
    assert "<script>alert" not in text and "http" not in text.replace("data:image", ""), "loads nothing"

    other = {**RESULTS, "settings": {"dtype": "bfloat16", "limit": 4}, "datasets": {"own": OWN}}
    answers = zip(rows[:3], ("red", "<i>", "x"), strict=True)
    better = [Row("own", each.question, answer, float(answer == "red")) for each, answer in answers]
    text = shown(page.write_comparison, [RESULTS, other], compare((RESULTS, rows), (other, better)))
    assert re.findall(CARD, text) == ["own / a", "own / b"] and re.search(
        'A 0 %</span><span class="bad">.*B 100 %</span><span>', text
    )
    assert "&lt;i&gt;" in text and "<i>" not in text and "settings dtype: A float32, B bfloat16" in text
    assert "每图最多 6 个图块" in text and "无法判断" in text and "nothing can be said" in text

    path.unlink()
    monkeypatch.setattr(page, "MOST_CARDS", 2)
    text = shown(page.write_report, RESULTS, rows)
    assert "data:image" not in text and re.findall(CARD, text) == ["own / a", "asked / d"]
