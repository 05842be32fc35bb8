"""The page of a run: self-contained, every series in a chart, answered questions, nothing from outside its folder."""

import json
import re

import pytest
from PIL import Image

from xtuner_plugins.engine.run_report import MAX_POINTS, cards, draw, smoothed, thinned, write_report

from .test_contract import CONTRACT
from .test_curves import start


@pytest.fixture
def work_dir(tmp_path):
    names = {
        "loss": 1.0,
        "lr/llm": 1e-3,
        "lr/projector": 5e-4,
        "val_loss": 2.0,
        "val_loss_by_dataset/票据": 3.0,
        "other/<b>": 7.0,
    }
    start(tmp_path / "run", "1", 0, [{"step": n, **names} for n in range(1, 61)])
    (tmp_path / "run" / "run_contract.json").write_text(json.dumps(CONTRACT))
    Image.new("RGB", (900, 300), "red").save(tmp_path / "run/seen.png")
    Image.new("RGB", (90, 30), "red").save(tmp_path / "outside.png")
    rows = [
        {"step": n, "image": "seen.png", "question": "<i>What?</i>", "answer": f"it is {n}", "expected": "red"}
        for n in range(9)
    ]
    rows += [{"step": 1, "image": "../outside.png", "question": "outside", "answer": "", "expected": None}]
    (tmp_path / "run/panel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_the_page_shows_everything_and_needs_nothing_else(work_dir):
    write_report(work_dir, {"lr": "1e-3", "base": "<models>"})
    page = (work_dir / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<img alt="([^"]*)" src="data:image/svg', page) == [
        "loss",
        "val_loss",
        "val_loss_by_dataset",
        "lr",
        "other",
    ]
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in re.sub(r"data:[^\"]*", "", page)
    for text in ("票据", "projector", "DDP on 8 ranks", "193,856", "&lt;models&gt;", "it is 8", "it is 0", "caption"):
        assert text in page, text
    assert "&lt;i&gt;What?&lt;/i&gt;" in page and "it is 2<" not in page  # the first and the latest
    assert "../outside.png is outside of the work directory" in page
    assert "Loss of the supervised tokens" in page and "监督词元的损失" in page
    with Image.open(work_dir / "loss.png") as image:
        assert image.width > 700
    assert not list(work_dir.glob(".*"))


def test_a_run_without_contract_or_numbers_has_a_page(tmp_path):
    write_report(tmp_path, {})
    assert "Nothing has been logged yet." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "loss.png").exists()


def test_the_later_answer_of_a_step_counts(tmp_path):
    rows = [{"step": 5, "image": None, "question": "a", "answer": text, "expected": None} for text in ("old", "new")]
    (card,) = cards(rows, tmp_path)
    assert card["answers"] == [(5, "new")] and card["image"] is None and card["problem"] is None


def test_long_lines_are_thinned_by_means():
    steps, values = thinned([(n, float(n % 2)) for n in range(1, 10 * MAX_POINTS + 1)])
    assert len(steps) == MAX_POINTS and steps[-1] == 10 * MAX_POINTS and set(values) == {0.5}
    assert smoothed([1.0] * 50) == [1.0] * 50 and 0.4 < smoothed([0.0, 1.0] * 100)[-1] < 0.6
    assert b"<svg" in draw({"a": [(1, 1.0)]}, "svg")
