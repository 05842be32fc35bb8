"""The quick start's images, drawn from logs and answers."""

import json

import pytest
from PIL import Image

from xtuner_plugins.engine.curves import draw_losses, read_losses
from xtuner_plugins.toy.charts import GREEN, RED, draw_contact_sheet
from xtuner_plugins.toy.data import write_data
from xtuner_plugins.toy.evaluate import read_questions


def write_log(work_dir, name, rows):
    path = work_dir / name / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_losses_are_those_of_the_newest_run(tmp_path):
    write_log(tmp_path, "20250101_000000", [{"step": 1, "loss": 9.0}])
    write_log(tmp_path, "20250102_000000", [{"step": 1, "loss": 2.0}, {"step": 1, "time": 3}, {"step": 2, "loss": 1.5}])
    assert read_losses(tmp_path) == ([1, 2], [2.0, 1.5])
    draw_losses({"one": tmp_path, "two": tmp_path}, tmp_path / "losses.png")
    assert Image.open(tmp_path / "losses.png").size == (2 * 600, 408)  # 5 x 3.4 inches per run at 120 dpi


def test_a_work_dir_without_logs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing was trained there"):
        read_losses(tmp_path)


def colors(sheet, row):
    """Pixels of each color in the answers of a row."""
    pixels = list(sheet.crop((780, row * 250, sheet.width, (row + 1) * 250)).getdata())
    return pixels.count(GREEN), pixels.count(RED)


def test_right_answers_are_green_and_wrong_ones_red(tmp_path):
    write_data(tmp_path, {"pretrain": 0, "train": 0, "test": 1}, workers=1)
    questions = read_questions(tmp_path / "test.jsonl")[:2]
    answers = {"tiling": {questions[0]["id"]: questions[0]["answer"], questions[1]["id"]: "?"}}
    draw_contact_sheet(questions, answers, tmp_path / "images", tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (1130, 2 * 250 + 16)
    right, wrong = colors(sheet, 0), colors(sheet, 1)
    assert right[0] > 0 == right[1] and wrong[1] > 0 == wrong[0]
