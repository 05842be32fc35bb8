"""The quick start's images, drawn from logs and answers."""

from PIL import Image

from xtuner_plugins.toy.charts import GREEN, RED, alternate, draw_contact_sheet
from xtuner_plugins.toy.data import write_data
from xtuner_plugins.toy.evaluate import read_questions


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


def test_chosen_questions_alternate_between_kinds_and_images():
    kinds = ["number"] * 40 + ["colour"] * 40
    questions = [{"id": index, "image": f"{index // 2}.jpg", "kind": kind} for index, kind in enumerate(kinds)]
    chosen = alternate(questions, ["number"], rows=6)
    assert [q["kind"] for q in chosen] == ["number", "colour"] * 3 and len({q["image"] for q in chosen}) == 6
