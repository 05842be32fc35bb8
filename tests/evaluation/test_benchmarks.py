"""Questions of one's own, training records, VLMEvalKit's layout, and folders of images."""

import base64
import io
import json

import pandas
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.errors import RecordError, SettingError
from xtuner_plugins.evaluation.benchmarks import open_data_sets
from xtuner_plugins.files import CACHE_VARIABLE
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.questions import Question
from xtuner_plugins.inference.session import Turn

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def cell(image=None):
    """An image as a TSV file holds it."""
    buffer = io.BytesIO()
    (image or Image.new("RGB", (40, 30))).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """opened(name, *rows, **options): the data set of a file in the test's folder, beside a.png and sub/b.PNG."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    for name in ("a.png", "sub/b.PNG", ".c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(base64.b64decode(cell()))

    def open_it(name, *rows, **options):
        path = tmp_path / name
        if path.suffix == ".tsv":
            pandas.DataFrame(rows).to_csv(path, sep="\t", index=False)
        elif rows:
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return open_data_sets(str(path), **options)[0]

    return open_it


def texts(found):
    return [item.text for item in found.questions]


def test_the_built_in_text_questions_keep_metric_and_prompt():
    (found,) = open_data_sets("text", metric="anls", prompt="Hello {question}")
    assert (found.name, found.metric.name, found.left_out, len(found.questions)) == ("text", "mentions", [], 45)
    assert {item.facts["category"] for item in found.questions} == {"English", "Chinese"}
    assert not any("Hello" in text for text in texts(found))


def test_questions_of_ones_own(opened, tmp_path):
    rows = [
        {"id": "r-17", "image": "a.png", "question": "Total?", "answer": "12.80", "category": "sums"},
        "",
        {"images": ["a.png", "sub/b.PNG"], "question": "Same?", "answers": ["no", "No way"], "group": 3},
        {"id": 4, "question": "{hint}?", "answer": 2},
        {"question": "", "answer": "x"},
    ]
    found = opened("own.jsonl", *rows, prompt="Q: {question}\nShort.")
    first, second, third = found.questions
    assert (found.name, found.metric.name) == ("own", "exact_match")
    place = f"{tmp_path}/own.jsonl:1"
    shown = ("Q: Total?\nShort.", ("a.png",), (str(tmp_path / "a.png"),), ("12.80",), {"category": "sums"}, place)
    assert first == Question("r-17", *shown)
    assert second.id == "line 3" and len(second.paths) == 2 and second.facts == {"group": 3}
    assert (third.id, third.text, third.expected) == ("4", "Q: {hint}?\nShort.", ("2",))
    assert texts(opened("own.jsonl", prompt="Which?")) == ["Total?", "Same?", "{hint}?", "Which?"]
    with pytest.raises(SettingError, match="has no {question}; write {question} where"):
        opened("asked.jsonl", {"question": "?", "answer": "x"}, prompt="Short.")
    opened("many.jsonl", {"question": "Which?", "choices": list("abcdefghijklmnopqrstuvwxyz"), "answer": "z"})
    rows = [{"question": "Which?", "choices": ["red", "blue"], "answer": "B"}]
    rows += [{"question": "Which?", "choices": {"C": "Cat", "D": "dog"}, "answer": "cat", "hint": "An animal."}]
    chosen = opened("chosen.jsonl", *rows)
    assert chosen.metric.name == "multiple_choice" and [item.expected for item in chosen.questions] == [("B",), ("C",)]
    assert texts(chosen) == ["Which?\nA. red\nB. blue", "An animal.\nWhich?\nC. Cat\nD. dog"]
    assert chosen.questions[1].facts == {"choices": {"C": "Cat", "D": "dog"}}


WRONG = [
    ({"question": "?"}, "no right answer"),
    ({"question": "?", "answer": {"x": 1}}, "'answer' is no text"),
    ({"question": "?", "answer": "x", "anwser": "y"}, "unknown key 'anwser'; the keys"),
    ({"question": "?", "answer": "x", "image": "missing.png"}, "isn't there; give the image folder"),
    ({"question": "?", "answer": "x", "image": "../a.png"}, "leaves the image folder"),
    ({"question": "?", "answer": "x", "choices": ["red"] * 27}, "no list of up to 26"),
    ({"question": "?", "answer": "x", "id": "line 1"}, "id 'line 1' was used before"),
    ({"question": "?", "answer": "x", "id": []}, "'id' is no text"),
    ("[1]", "not an object"),
    ({"conversations": [1]}, "turn 1 is a number"),
]
BAD_ROWS = [
    (f"1\t{cell()[:80]}*\t?\tx", "its image isn't base64"),
    (f"3\t{cell()}\t?\t", "no 'answer'"),
    ("4\t\t?\tx", "no image"),
    (f"6\t{cell()}\t?\tx\ty", "more cells than columns"),
]


def test_what_cannot_be_used_is_named_with_its_place(opened, tmp_path):
    good = {"question": "?", "answer": "yes"}
    found = opened("own.jsonl", good, *(line for line, _ in WRONG), images=str(tmp_path / "sub"))
    rows = tmp_path / "rows.tsv"
    rows.write_text(f"index\timage\tquestion\tanswer\n0\t{cell()}\t?\tx\n" + "\n".join(row for row, _ in BAD_ROWS))
    for data_set, wrong, first in ((found, WRONG, 2), (open_data_sets(str(rows))[0], BAD_ROWS, 3)):
        assert len(data_set.questions) == 1
        for number, ((_, text), each) in enumerate(zip(wrong, data_set.left_out, strict=True), first):
            assert f"{data_set.path}:{number}" in each.message and text in each.message, (text, each)
    found = opened("own.jsonl", good, {**good, "answer": "m"}, metric="yes_no")
    assert found.metric.name == "yes_no" and len(found.questions) == 1
    assert "own.jsonl:2 (line 2): the right answer ['m'] is neither yes nor no" in found.left_out[0].message


UNREADABLE = [  # file, content, message
    ("a.csv", b"", "is neither .tsv nor .jsonl nor a folder"),
    ("a.jsonl", b'{"question": "?", "choices": ["x"], "answer": 1}', r"\['1'\] is none of the letters A"),
    ("a.tsv", b"question\timage\n", "has no column 'answer'; .* take dev or val"),
    ("a.tsv", b"index\tanswer\n", "has no column 'question'; its columns are index, answer"),
    ("a.tsv", b"question\tanswer\timage\n\xff\tb\tc\n", "can't be read as TSV .*; save it as UTF-8 with tabs"),
]


def test_files_that_cannot_be_read(opened, tmp_path):
    for name, content, message in UNREADABLE:
        (tmp_path / name).write_bytes(content)
        with pytest.raises((SettingError, RecordError), match=message):
            open_data_sets(str(tmp_path / name))
    with pytest.raises(SettingError, match="metric 'yesno' is unknown"):
        opened("own.jsonl", {"question": "?", "answer": "yes"}, metric="yesno")
    with pytest.raises(SettingError, match="no 'question'; every row needs one, or give --prompt"):
        open_data_sets(str(tmp_path / "sub"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="empty: it holds no images and no questions; correct it"):
        open_data_sets(str(tmp_path / "empty"), prompt="hi")


def chat(asked, answer="A bus.", *more, **given):
    turns = zip("human gpt".split() * 3, (asked, answer, *more), strict=False)
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **given}


BOTH = ["a.png", "sub/b.PNG"]
PARTS = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
TRAIN = [  # record, text of the question, right answer
    (chat("<image>\nWhat is it?", image="a.png", id=7), "What is it?", "A bus."),
    (chat("What is it?", images=["a.png"], id=7), "What is it?", "A bus."),
    (chat("What is it? <image>", image="a.png"), "What is it? <image>", "A bus."),
    (chat(" Is <image> red?\n", " A bus.\n", image="a.png"), " Is <image> red?\n", " A bus.\n"),
    (chat("<image>\n", image="a.png", kind="caption"), "<image>\n", "A bus."),
    (chat("<image>\n<image>\nSame?", image=BOTH, system=""), "Same?", "A bus."),
    (chat("<image>\nLike <image>?", images=BOTH), "<image>\nLike <image>?", "A bus."),
    (chat("Hello"), "Hello", "A bus."),
    ({"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "A."}]}, "<image>What?", "A."),
    ({"query": "<image>Which?", "response": "This.", "images": BOTH[:1]}, "<image>Which?", "This."),
    ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "Add.\n1 + 1", "2"),
    (chat("Where?", "<box>[[4, 3, 20, 30]]</box>", image="a.png", boxes="pixel", width=40, height=30), "Where?",
     "<box>[[100, 100, 500, 1000]]</box>"),
    (chat("Where?", "<bbox>", image="a.png", objects={"bbox": [[4, 3, 20, 30]]}), "Where?",
     "<box>[[100, 100, 500, 1000]]</box>"),
]  # fmt: skip
NOT_ASKED = [  # records that are asked otherwise than they train, or that don't train
    (chat("<image>\nWhat?", "A bus.", "Why?", "So.", image="a.png"), "more than one question in a training record"),
    (chat("What?", system="Look."), "a system message in a training record; one question"),
    (chat("<video>\nWhat?", video="a.mp4"), "a video, or an image that is no file in a"),
    (chat("What?", image=f"data:image/png;base64,{cell()}"), "a video, or an image that is no file in a"),
    ({"messages": [{"role": "user", "content": [*PARTS, {"type": "text", "text": "<image>"}]},
                   {"role": "assistant", "content": "A."}]}, "<image> as plain text in a training record"),
    (chat("<image><image>", image="a.png"), "2 <image> in the user's turns, but 1 image given"),
    (chat("<image>\nWhat?"), "1 <image> in the user's turns, but 0 images given"),
    ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A.", "loss": False}]},
     "no answer is learned"),
    (chat("Where?", "<box>[[4, 3, 20, 30]]</box>", image="a.png", boxes="pixel", width=30, height=40), "is 40x30"),
    (chat("Where?", "<bbox>", image="gone.png", objects={"bbox": [[4, 3, 20, 30]]}), "no such image"),
]  # fmt: skip


def test_the_file_that_trains_asks_what_it_trains(opened, toy_base, tmp_path):
    found = opened("train.jsonl", *(record for record, *_ in TRAIN + NOT_ASKED))
    for number, ((_, text), each) in enumerate(zip(NOT_ASKED, found.left_out, strict=True), len(TRAIN) + 1):
        assert f"train.jsonl:{number}" in each.message and text in each.message, (text, each)
    assert [each.id for each in found.questions][:3] == ["7", "line 2", "line 3"], "LLaVA's files repeat ids"
    session = open_session(toy_base, device="cpu")
    data = MultimodalDataset(toy_base, found.path, str(tmp_path))
    for row, (record, text, answer) in enumerate(TRAIN):
        question, sample = found.questions[row], data[row]
        assert (question.text, question.expected) == (text, (answer,)), record
        ids, learned = sample["input_ids"].tolist(), int((sample["labels"] >= 0).nonzero()[0])
        assert session.prompt_ids([Turn(question.text, question.paths)]) == ids[:learned], record
        assert session.tokenizer.decode(ids[learned:]).startswith(answer)


def test_records_on_one_line_are_numbered(opened):
    records = [chat("<image>\nWhat is it?", image="a.png"), *[{"question": "?", "answer": "x"}] * 2, {"question": "?"}]
    found = opened("own.json", json.dumps(records))
    assert [each.id for each in found.questions] == ["line 1", "line 1, record 2", "line 1, record 3"]
    assert "own.json:1, record 4 (line 1, record 4): no right answer" in found.left_out[0].message
    by_line = opened("own.json", json.dumps(records, indent=1))
    assert [each.id for each in by_line.questions] == ["line 2", "line 15", "line 19"]


def test_questions_without_answers_are_only_asked(opened, tmp_path):
    asked = opened("asked.jsonl", {"image": "a.png", "question": "What?"}, metric="cer")
    assert asked.metric is None and asked.questions[0].expected == () and asked.longest_answer == 512
    (tmp_path / "d.HEIC").touch()  # answering names it and says what to do
    folder = opened("", prompt="What is it?")
    assert folder.metric is None and [item.id for item in folder.questions] == ["a.png", "d.HEIC", "sub/b.PNG"]
    assert set(texts(folder)) == {"What is it?"} and folder.questions[2].paths == (str(tmp_path / "sub/b.PNG"),)


def test_limits_names_and_hashes(opened, tmp_path):
    rows = [{"id": n, "question": "?", "answer": "x", "group": group} for n, group in enumerate("ababc")]
    for length, tokens in ((64, 128), (65, 512)):
        long = opened("own.jsonl", *rows, {"question": "?", "answer": "x" * length}, limit=1)
        assert long.longest_answer == tokens
    whole = opened("own.jsonl", *rows)
    for limit, ids in ((2, "02"), (3, "0123")):
        part = opened("own.jsonl", *rows, limit=limit)
        assert [item.id for item in part.questions] == list(ids) and part.hash == whole.hash
    hashes = {whole.hash, opened("own.jsonl", *rows[:4]).hash}
    changes = [{"question": "Why?"}, {"answer": "z"}, {"image": "a.png"}, {"category": "z"}]
    hashes |= {opened("own.jsonl", {**rows[0], **changed}, *rows[1:]).hash for changed in changes}
    assert len(hashes) == 6
    opened("sub/own.jsonl", *rows)
    with pytest.raises(SettingError, match="have the same name, 'own'; rename one of them"):
        open_data_sets([str(tmp_path / "own.jsonl"), str(tmp_path / "sub/own.jsonl")])


LAYOUTS = [  # file, cells, metric, text, right answers, facts
    ("POPE", {"answer": "No", "category": "random,popular"}, "yes_no", f"Q?\n{SHORT}", "No",
     {"category": ["random", "popular"]}),
    ("TextVQA_VAL", {"answer": str(["nokia"] * 9 + ["a"])}, "vqa_accuracy", f"Q? {SHORT}", 9 * "nokia " + "a", {}),
    ("DocVQA_VAL", {"answer": "['0.28', \"it's\"]"}, "anls", f"Q? {SHORT}", "0.28 it's", {}),
    ("ChartQA_TEST", {"answer": "14", "split": "test_human", "question": "{choices}"}, "relaxed_accuracy",
     f"{{choices}} {SHORT}", "14", {"category": "test_human"}),
    ("ScienceQA_TEST", {"answer": "A", "A": "sun", "hint": "H"}, "multiple_choice", f"H\nQ?\nA. sun\n{LETTER}", "A",
     {"choices": {"A": "sun"}}),
    ("MMBench_DEV_CN", {"index": "1000241", "answer": "A", "A": "一", "l2-category": "c"}, "multiple_choice",
     "Q?\nA. 一\n请直接回答选项字母。", "A", {"choices": {"A": "一"}, "group": "241"}),
    ("mine", {"answer": "sun", "A": "sun", "group": "g"}, "multiple_choice", "Q?\nA. sun", "A",
     {"choices": {"A": "sun"}, "group": "g"}),
]  # fmt: skip


def test_files_by_name(opened):
    for name, row, metric, text, expected, facts in LAYOUTS:
        found = opened(f"{name}.tsv", {"index": "0", "image": cell(), "question": "Q?", **row})
        (item,) = found.questions
        said = (found.metric.name, item.text, item.expected, item.facts)
        assert said == (metric, text, tuple(expected.split()), facts), name


def test_images_of_rows(opened, tmp_path):
    """A row may come before the one that holds its image, of whatever size, or name a file; it is written once."""
    rows = [
        {"index": "5", "image": "6", "question": 'Two\nlines and a "quote"?', "answer": "x"},
        {"index": "6", "image": cell(), "question": "?", "answer": "y"},
        {"index": "8", "image": "a.png", "question": "?", "answer": "z"},
        {"index": "6", "image": cell(Image.effect_noise((400, 300), 90)), "question": "?", "answer": "y"},
    ]
    found = opened("mine.tsv", *rows)
    five, six, eight = found.questions
    assert five.paths == six.paths and open(six.paths[0], "rb").read() == (tmp_path / "a.png").read_bytes()
    assert five.text == 'Two\nlines and a "quote"?'
    assert six.place.endswith("mine.tsv:4")  # the first row takes two lines
    assert [each.message.partition(": ")[2][:8] for each in found.left_out] == ["id '6' w"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(times) == 2 and opened("mine.tsv", *rows).questions == found.questions
    assert {path: path.stat().st_mtime_ns for path in times} == times
