"""The page shows question, image and answer, escaped, and names what could not be asked."""

from PIL import Image

from xtuner_plugins.inference import answer_page
from xtuner_plugins.inference.answer_page import write_page
from xtuner_plugins.inference.questions import Question, Unusable


def test_the_page(tmp_path, monkeypatch):
    Image.new("RGB", (800, 400)).save(tmp_path / "a.png")
    paths = ((), (str(tmp_path / "a.png"),), (str(tmp_path / "gone.png"),), ())
    questions = [Question(f"q{n}", f"Where, {n}?", (f"a{n}.png",) * len(each), each) for n, each in enumerate(paths)]
    rows = {f"q{n}": {"answer": f"<b>{n}</b> <box>[[0, 0, 9, 9]]</box>"} for n in range(3)}
    write_page(tmp_path / "a.html", "exports/<mine>", questions, rows, [Unusable("x", "x.jpg: can't <be> decoded")])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "的 3 个回答" in page and "有 1 个问题无法提出" in page
    assert "3 answers of" in page and "exports/&lt;mine&gt;" in page and "1 question could not be asked" in page
    assert "&lt;b&gt;2&lt;/b&gt;" in page and "<b>" not in page and "Where, 3?" not in page
    assert page.count("data:image/jpeg;base64,") == 1 and "a1.png, 800x400" in page and "no such image" in page
    assert "x.jpg: can&#39;t &lt;be&gt; decoded" in page and "shows the first" not in page
    monkeypatch.setattr(answer_page, "MOST_CARDS", 2)
    write_page(tmp_path / "a.html", "m", questions, rows, [])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "this page shows the first 2" in page and "could not be asked" not in page
