"""The files of benchmarks as their authors publish them."""

import json

import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import open_benchmark

SHORT = "Answer the question using a single word or phrase."


@pytest.fixture
def write_json(tmp_path):
    def write(name, value):
        path = tmp_path / name
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


def test_refcoco(write_lines, put):
    put("train2014/COCO_1.png")
    record = {
        "image": "data/coco/train2014/COCO_1.png",
        "sent": "left dog",
        "bbox": [10, 20, 30.5, 40],
        "width": 100,
        "height": 50,
    }
    found = open_benchmark(
        write_lines("refcoco+_testA.jsonl", record, record | {"bbox": [1, 2]}, record | {"width": 0})
    )
    (item,) = found.items
    assert (found.kind, found.metric) == ("refcoco", "iou")
    assert item.question.text == (
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>left dog</ref>"
    )
    assert item.expected == ("[10, 20, 30.5, 40]",) and item.facts == {"frame": "pixel", "width": 100, "height": 50}
    assert ["'bbox' is [1, 2]" in found.unusable[0].message, "no size of the image" in found.unusable[1].message] == [
        True,
        True,
    ]


def test_pope(write_lines, put, tmp_path):
    put("COCO_val2014_1.png")
    record = {"question_id": 1, "image": "COCO_val2014_1.png", "text": "Is there a dog in the image?", "label": "yes"}
    for kind in ("random", "popular"):
        path = write_lines(f"coco/coco_pope_{kind}.json", record, record | {"question_id": 2, "label": "no"})
    one = open_benchmark(path, images=tmp_path)
    assert (one.kind, one.metric, one.name) == ("pope", "yes_no", "coco_pope_popular")
    assert one.items[0].question.text == f"Is there a dog in the image?\n{SHORT}"
    both = open_benchmark(tmp_path / "coco", images=tmp_path)
    assert [item.question.id for item in both.items] == ["popular/1", "popular/2", "random/1", "random/2"]
    assert [item.facts["category"] for item in both.items] == ["popular"] * 2 + ["random"] * 2
    assert both.reason == "a folder of pope's files" and both.name == "coco"


def test_textvqa(write_json, put, tmp_path):
    put("train_images/abc.jpg")
    entry = {
        "question": "what brand?",
        "image_id": "abc",
        "question_id": 34602,
        "answers": ["nokia"] * 10,
        "set_name": "val",
    }
    found = open_benchmark(write_json("TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": [entry]}))
    (item,) = found.items
    assert (found.kind, found.metric) == ("textvqa", "vqa_accuracy")
    assert (item.question.id, item.question.text) == ("34602", f"what brand? {SHORT}")
    assert item.question.paths == (str(tmp_path / "train_images/abc.jpg"),)


def test_docvqa(write_json, put):
    put("documents/xnbl0037_1.png")
    entry = {"questionId": 49153, "question": "What?", "image": "documents/xnbl0037_1.png", "answers": ["0.28"]}
    value = {
        "dataset_name": "SP-DocVQA",
        "data": [entry, entry | {"questionId": 2, "question_types": ["form", "layout"]}],
    }
    found = open_benchmark(write_json("val_v1.0_withQT.json", value))
    assert (found.kind, found.metric) == ("docvqa", "anls")
    assert found.items[0].question.text == f"What? {SHORT}"
    assert found.items[1].facts == {"category": ["form", "layout"]}


def test_chartqa(write_json, put, tmp_path):
    put("png/1.png")
    for part in ("human", "augmented"):
        path = write_json(f"test_{part}.json", [{"imgname": "1.png", "query": "How many?", "label": "14"}])
    assert open_benchmark(path).items[0].facts == {"category": "augmented"}
    found = open_benchmark(tmp_path)
    assert (found.kind, found.metric) == ("chartqa", "relaxed_accuracy")
    assert [item.question.id for item in found.items] == ["augmented/1", "human/1"]


def test_ocrbench(write_json, put):
    put("OCRBench_Images/IIIT5K/1.png")
    entry = {
        "dataset_name": "IIIT5K",
        "id": 0,
        "image_path": "IIIT5K/1.png",
        "question": "what is written in the image?",
    }
    found = open_benchmark(
        write_json("OCRBench.json", [entry | {"answers": ["CENTRE"], "type": "Regular Text Recognition"}])
    )
    (item,) = found.items
    assert (found.kind, found.metric, item.expected) == ("ocrbench", "ocrbench", ("CENTRE",))
    assert item.question.text == f"what is written in the image?\n{SHORT}"
    assert item.facts == {"category": "Regular Text Recognition"}


def problem(**more):
    base = {
        "question": "Which?",
        "choices": ["sun", "moon"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "test",
    }
    return base | {"subject": "natural science"} | more


def test_scienceqa(write_json, put):
    put("test/5/image.png")
    value = {"1": problem(split="train"), "5": problem(), "6": problem(image=None), "7": problem(answer=2)}
    found = open_benchmark(write_json("problems.json", value))
    (item,) = found.items
    assert (found.kind, item.question.id, item.expected) == ("scienceqa", "5", ("B",))
    assert item.question.text == (
        "Look.\nWhich?\nA. sun\nB. moon\nAnswer with the option's letter from the given choices directly."
    )
    assert item.facts == {"choices": {"A": "sun", "B": "moon"}, "category": "natural science"}
    (unusable,) = found.unusable
    assert "problems.json: entry 7" in unusable.message and "2 is the index of no choice" in unusable.message


def test_scienceqa_converted(write_lines, put):
    put("images/test/5/image.png")
    record = problem(image="data/scienceqa/images/test/5/image.png", hint="")
    found = open_benchmark(write_lines("scienceqa_test_img.jsonl", record))
    assert (found.kind, found.items[0].expected, found.items[0].question.id) == ("scienceqa", ("B",), "line 1")
    assert found.items[0].question.text.startswith("Which?\nA. sun")


def test_mme(tmp_path, put):
    put("images/OCR/0001.png", "images/celebrity/images/tt.png")
    folder = tmp_path / "Your_Results"
    folder.mkdir()
    (folder / "OCR.txt").write_text(
        "0001.png\tIs it? Please answer yes or no.\tYes\n0001.png\tIs it not?\tNo\nbroken\n"
    )
    (folder / "celebrity.txt").write_text("tt.png\tIs he?\tYes\n")
    found = open_benchmark(folder, images=tmp_path / "images")
    assert (found.kind, found.metric) == ("mme", "mme")
    assert [item.question.id for item in found.items] == ["OCR/1", "OCR/2", "celebrity/1"]
    assert found.items[0].question.text == f"Is it? Please answer yes or no. {SHORT}"
    assert found.items[0].facts == {"category": "OCR", "group": "OCR/0001.png"}
    assert "OCR.txt:3: 1 cells; image, question and answer" in found.unusable[0].message
    assert found.reason == "a folder of mme's files"
    assert len(open_benchmark(folder / "OCR.txt", images=tmp_path / "images").items) == 2


def test_mme_as_released(tmp_path, put):
    put("existence/0001.jpg", "celebrity/images/tt.png")
    for name in ("existence/0001.txt", "celebrity/questions_answers_YN/tt.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Is it?\tYes\nIs it not?\tNo\n")
    (tmp_path / "existence" / "0002.txt").write_text("broken\n")
    found = open_benchmark(tmp_path)
    assert [item.question.id for item in found.items] == [
        *("existence/0001/1", "existence/0001/2", "celebrity/tt/1", "celebrity/tt/2"),
    ]
    assert found.items[2].question.paths == (str(tmp_path / "celebrity/images/tt.png"),)
    assert found.items[3].facts == {"category": "celebrity", "group": "celebrity/tt"}
    assert "0002.txt:1: no tab; write question and answer" in found.unusable[0].message


def test_converted_files_need_a_name(write_lines, put, tmp_path):
    put("data/docvqa/val/documents/a.png", "documents/a.png")
    record = {"question_id": 3, "image": "data/docvqa/val/documents/a.png", "question": "Who?", "answer": ["I", "me"]}
    with pytest.raises(
        SettingError, match="as converted files of several benchmarks have; name it: --kind, one of textvqa"
    ):
        open_benchmark(write_lines("val.jsonl", record))
    found = open_benchmark(write_lines("docvqa/val.jsonl", record), images=tmp_path)
    assert (found.kind, found.metric) == ("docvqa", "anls") and found.items[0].expected == ("I", "me")
    assert found.items[0].question.text == "Who? Answer the question using a single word or phrase."
    chart = open_benchmark(write_lines("chartqa/test_human.jsonl", record), images=tmp_path)
    assert chart.metric == "relaxed_accuracy" and chart.items[0].facts == {"category": "human"}
    assert open_benchmark(write_lines("val.jsonl", record), kind="docvqa").kind == "docvqa"
