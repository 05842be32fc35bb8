"""The setting `panel`, and the file of answers."""

import json

import pytest
from PIL import Image

from xtuner_plugins.engine.panel import FILE, PanelLog, read_panel
from xtuner_plugins.ranges import RangeError


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), "red" if name == "a" else "blue").save(tmp_path / name / "cat.PNG")
    return tmp_path


def write(folder, *lines):
    path = folder / "panel.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_images_are_relative_to_the_file_or_to_the_current_folder(folder, monkeypatch):
    record = {"image": "a/cat.PNG", "question": "What?", "expected": "A cat."}
    [read] = read_panel(write(folder, record, "\n"))
    assert read.image == folder / "a/cat.PNG" and (read.question, read.expected) == ("What?", "A cat.")
    monkeypatch.chdir(folder)
    assert read_panel([record])[0].image.resolve() == folder / "a/cat.PNG"
    assert read_panel(None) == read_panel([]) == []


GOOD = {"image": "a/cat.PNG", "question": "What?"}
BAD = [
    (["{"], r"panel.jsonl:1: no JSON"),
    ([GOOD, "3"], r"panel.jsonl:2: 3 is no record of a panel; give "),
    ([GOOD, "\n", {"image": "a/cat.PNG"}], r"panel.jsonl:3: a question is missing"),
    ([{"image": "a/cat.PNG", "question": " "}], r"panel.jsonl:1: a question is missing"),
    ([{"question": "What?"}], r"panel.jsonl:1: an image is missing"),
    ([{**GOOD, "image": "a/dog.png"}], r"panel.jsonl:1: image .*a/dog.png does not exist"),
    ([{**GOOD, "answer": "A cat."}], r"panel.jsonl:1: unknown field 'answer'; give .*expected"),
    ([{**GOOD, "expected": 3}], r"panel.jsonl:1: expected=3 is no text"),
    ([{**GOOD, "question": "<image><image>?"}], r"panel.jsonl:1: the question has several <image>"),
    ([], r"panel.jsonl holds no record"),
]


@pytest.mark.parametrize("lines, message", BAD, ids=[message for _, message in BAD])
def test_what_can_not_be_used_is_said_with_its_line(folder, lines, message):
    with pytest.raises(RangeError, match=message) as caught:
        read_panel(write(folder, *lines))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("panel", [{"image": "a"}, 3, True])
def test_another_type_is_refused(panel):
    with pytest.raises(RangeError, match="can't be used; give a jsonl file, or a list of dicts"):
        read_panel(panel)


def test_answers_have_their_images_beside_them_and_no_doubles(folder):
    records = read_panel([{**GOOD, "image": str(folder / name / "cat.PNG")} for name in ("a", "b", "a")])
    run = folder / "run"
    log = PanelLog(run, records)
    log.start(1)
    log.append(2, ["one", "zwei \u00e4", "drei\n"])
    log.append(4, ["x", "y", "z"])
    lines = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 2, 4, 4, 4] and lines[1]["answer"] == "zwei \u00e4"
    assert set(lines[0]) == {"step", "image", "question", "answer", "expected"}
    assert lines[0]["image"] == lines[2]["image"] != lines[1]["image"]
    for line, name in zip(lines, "aba", strict=False):
        assert (run / line["image"]).read_bytes() == (folder / name / "cat.PNG").read_bytes()
    assert len(list((run / "panel").iterdir())) == 2
    with (run / FILE).open("a") as file:
        file.write('{"step": 3, "ima')  # killed while writing
    log.start(4)
    assert [json.loads(line)["step"] for line in (run / FILE).read_text().splitlines()] == [2, 2, 2]
