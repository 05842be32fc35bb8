"""VLMEvalKit's layout: base64 images, rows that refer to the image of another row, letters as columns."""

import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import open_benchmark
from xtuner_plugins.evaluation.metrics import METRICS

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def mmbench(in_base64):
    same = {"hint": "", "C": "", "category": "color", "l2-category": "coarse"}
    return [
        {"index": "241", "question": "Which?", "A": "red", "B": "blue", "answer": "A", "image": in_base64(1), **same},
        {"index": "1000241", "question": "Which?", "A": "blue", "B": "red", "answer": "B", "image": "241", **same},
        {
            "index": "7",
            "question": "几个？",
            "A": "一",
            "B": "二",
            "answer": "B",
            "image": in_base64(2),
            **same,
            "hint": "看图",
        },
    ]


def test_mmbench(write_tsv, in_base64, tmp_path, png):
    found = open_benchmark(write_tsv("MMBench_DEV_EN.tsv", mmbench(in_base64)), cache=tmp_path / "cache")
    assert (found.kind, found.metric, found.unusable) == ("mmbench", "multiple_choice", [])
    assert "a TSV file with the name of mmbench and the columns index, question, A" in found.reason
    first, rotated, chinese = found.items
    assert first.question.text == f"Which?\nA. red\nB. blue\n{LETTER}"
    assert chinese.question.text == "看图\n几个？\nA. 一\nB. 二\n请直接回答选项字母。"
    assert first.facts == {"choices": {"A": "red", "B": "blue"}, "category": "color", "group": "241"}
    assert first.question.paths == rotated.question.paths and rotated.facts["group"] == "241"
    assert open(first.question.paths[0], "rb").read() == png(1)
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 2
    figures = METRICS["multiple_choice"].figures(["A", "A", "B"], found.items)
    assert figures["accuracy"] == 50 and figures["accuracy_single"] == pytest.approx(200 / 3)


def test_images_are_written_once(write_tsv, in_base64, tmp_path):
    path = write_tsv("MMStar.tsv", [{"index": "0", "question": "?", "A": "x", "answer": "A", "image": in_base64()}])
    (name,) = open_benchmark(path, cache=tmp_path / "cache").items[0].question.paths
    before = (tmp_path / name).stat().st_mtime_ns
    again = open_benchmark(path, cache=tmp_path / "cache").items[0].question.paths
    assert again == (name,) and (tmp_path / name).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name, row, kind, metric, text, expected, facts",
    [
        ("POPE.tsv", {"answer": "No", "category": "random,popular"}, "pope", "yes_no",
         f"Q?\n{SHORT}", ("No",), {"category": ["random", "popular"]}),
        ("TextVQA_VAL.tsv", {"answer": str(["nokia"] * 9 + ["a"])}, "textvqa", "vqa_accuracy",
         f"Q? {SHORT}", ("nokia",) * 9 + ("a",), {}),
        ("DocVQA_VAL.tsv", {"answer": "['0.28', \"it's\"]"}, "docvqa", "anls", f"Q? {SHORT}", ("0.28", "it's"), {}),
        ("ChartQA_TEST.tsv", {"answer": "14", "split": "test_human"}, "chartqa", "relaxed_accuracy",
         f"Q? {SHORT}", ("14",), {"category": "test_human"}),
        ("AI2D_TEST.tsv", {"answer": "A", "A": "sun"}, "ai2d", "multiple_choice",
         f"Q?\nA. sun\n{LETTER}", ("A",), {"choices": {"A": "sun"}}),
        ("ScienceQA_TEST.tsv", {"answer": "A", "A": "sun", "hint": "H"}, "scienceqa", "multiple_choice",
         f"H\nQ?\nA. sun\n{LETTER}", ("A",), {"choices": {"A": "sun"}}),
        ("MMStar.tsv", {"answer": "A", "A": "sun", "category": "math"}, "mmstar", "multiple_choice",
         f"Q?\nA. sun\n{LETTER}", ("A",), {"choices": {"A": "sun"}, "category": "math"}),
        ("mine.tsv", {"answer": "sun", "A": "sun", "group": "g"}, "own", "multiple_choice",
         "Q?\nA. sun", ("A",), {"choices": {"A": "sun"}, "group": "g"}),
    ],
)  # fmt: skip
def test_files_by_name(name, row, kind, metric, text, expected, facts, write_tsv, in_base64, tmp_path):
    row = {"index": "0", "image": in_base64(), "question": "Q?", **row}
    found = open_benchmark(write_tsv(name, [row]), cache=tmp_path / "cache")
    (item,) = found.items
    assert (found.kind, found.metric) == (kind, metric)
    assert (item.question.text, item.expected, item.facts) == (text, expected, facts)


def test_a_suffix_is_not_written_twice(write_tsv, in_base64, tmp_path):
    row = {"index": "0", "image": in_base64(), "question": f"Q?\n{SHORT}", "answer": "yes", "category": "random"}
    (item,) = open_benchmark(write_tsv("POPE.tsv", [row]), cache=tmp_path / "cache").items
    assert item.question.text == f"Q?\n{SHORT}"


def test_an_image_may_follow_its_reference_and_cells_may_hold_lines(write_tsv, in_base64, tmp_path):
    rows = [
        {"index": "5", "image": "6", "question": 'Two\nlines and a "quote"?', "answer": "x"},
        {"index": "6", "image": in_base64(), "question": "?", "answer": "y"},
        {"index": "7", "image": "gone.png", "question": "?", "answer": "z"},
    ]
    found = open_benchmark(write_tsv("mine.tsv", rows), cache=tmp_path / "cache")
    by_id = {item.question.id: item for item in found.items}
    assert by_id["5"].question.paths == by_id["6"].question.paths
    assert by_id["5"].question.text == 'Two\nlines and a "quote"?'
    assert by_id["6"].place.endswith("mine.tsv:4")  # the first row takes two lines
    assert "mine.tsv:5: image" in found.unusable[0].message and "gone.png' isn't there" in found.unusable[0].message


def test_damaged_rows_are_named(write_tsv, in_base64, tmp_path):
    image = in_base64()
    rows = [
        {"index": "0", "image": image, "question": "?", "answer": "x"},
        {"index": "1", "image": image[:80] + "*" + image[81:], "question": "?", "answer": "x"},
        {"index": "2", "image": "QUJD" * 30, "question": "?", "answer": "x"},
        {"index": "3", "image": image, "question": "?", "answer": ""},
        {"index": "4", "image": "", "question": "?", "answer": "x"},
    ]
    path = write_tsv("mine.tsv", rows)
    with open(path, "a") as file:
        file.write("5\tonly two\n")
    found = open_benchmark(path, cache=tmp_path / "cache")
    assert [item.question.id for item in found.items] == ["0"]
    wanted = ["its image isn't base64", "its image can't be read", "no 'answer'", "no image", "2 cells, and 4 columns"]
    for line, want, unusable in zip(range(3, 8), wanted, found.unusable, strict=True):
        assert f"{path}:{line}" in unusable.message and want in unusable.message


@pytest.mark.parametrize(
    "row, message",
    [
        ({"index": "0", "image": "x" * 80, "question": "?"}, "has no column 'answer'; .* take the dev or val split"),
        ({"index": "0", "answer": "x"}, "has no column 'question'; its columns are index, answer"),
        ({"question": "0", "answer": "x"}, "has no column 'image' or 'image_path'"),
        ({"index": "0", "image": "QUJD" * 30, "question": "?", "answer": "x"}, "no cache folder is given"),
    ],
)
def test_refused(row, message, write_tsv):
    with pytest.raises(SettingError, match=message):
        open_benchmark(write_tsv("mine.tsv", [row]))


def test_a_file_that_is_no_table(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_bytes(b"index\tquestion\tanswer\timage\n1\t\xff\tb\tc\n")
    with pytest.raises(SettingError, match="can't be read as TSV .*; save it as UTF-8 with tabs"):
        open_benchmark(path)
    path.write_text("nothing here\n")
    with pytest.raises(SettingError, match="names no columns"):
        open_benchmark(path)
