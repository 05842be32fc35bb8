"""Questions of one's own, training records, VLMEvalKit's layout, and folders of images."""

import json

import pytest

from tests.conftest import ROOT
from xtuner_plugins.errors import RecordError, SettingError
from xtuner_plugins.evaluation.benchmarks import STEMS, fill, first_groups, items_hash, open_data_sets
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.metrics import METRICS
from xtuner_plugins.inference.questions import Question

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def open_one(path, **options):
    (found,) = open_data_sets(str(path), **options)
    return found


def check_messages(found, path, wanted, first=2):
    """Line after line from the first one on is left out, each with its place and one of these texts."""
    for number, (text, each) in enumerate(zip(wanted, found.left_out, strict=True), first):
        assert f"{path}:{number}" in each.message and text in each.message


def test_the_built_in_text_questions():
    """They are whole, keep metric and prompt, and no question says its answer."""
    found = open_one("text", metric="anls", prompt="Hello {question}")
    assert (found.name, found.metric.name, found.left_out) == ("text", "mentions", [])
    assert len(found.items) >= 40 and {item.facts["category"] for item in found.items} == {"English", "Chinese"}
    assert len({item.question.text for item in found.items}) == len(found.items)
    for item in found.items:
        assert item.question.paths == () and "Hello" not in item.question.text
        assert not found.metric.score(item.question.text, item), item
        assert all(found.metric.score(answer, item) for answer in item.expected)


def test_questions_of_ones_own(write_lines, put, tmp_path):
    put("a.png", "sub/b.png")
    path = write_lines(
        "own.jsonl",
        {"id": "r-17", "image": "a.png", "question": "Total?", "answer": "12.80", "category": "sums"},
        "",
        {"images": ["a.png", "sub/b.png"], "question": "Same?", "answers": ["no", "No way"], "group": 3},
        {"id": 4, "question": "1 + 1?", "answer": 2},
    )
    found = open_one(path)
    assert (found.name, found.metric.name, found.left_out) == ("own", "exact_match", [])
    first, second, third = found.items
    assert first.question == Question("r-17", "Total?", ("a.png",), (str(tmp_path / "a.png"),))
    assert (first.expected, first.facts, first.place) == (("12.80",), {"category": "sums"}, f"{path}:1")
    assert second.question.id == "line 3" and len(second.question.paths) == 2 and second.facts == {"group": 3}
    assert (third.question.id, third.question.paths, third.expected) == ("4", (), ("2",))
    assert found.asked(first).id == "own/r-17"


def test_choices(write_lines):
    path = write_lines(
        "own.jsonl",
        {"question": "Which?", "choices": ["red", "blue"], "answer": "B"},
        {"question": "Which?", "choices": {"C": "Cat", "D": "dog"}, "answer": "cat", "hint": "An animal."},
    )
    found = open_one(path)
    assert found.metric.name == "multiple_choice"
    assert found.items[0].question.text == "Which?\nA. red\nB. blue" and found.items[0].expected == ("B",)
    assert found.items[1].question.text == "An animal.\nWhich?\nC. Cat\nD. dog" and found.items[1].expected == ("C",)
    assert found.items[1].facts == {"choices": {"C": "Cat", "D": "dog"}}


def test_what_cannot_be_used_is_named(write_lines, put, tmp_path):
    put("images/a.png", "secret.png")
    path = write_lines(
        "own.jsonl",
        {"question": "?", "answer": "yes"},
        "{broken",
        {"question": "?"},
        {"question": "", "answer": "x"},
        {"question": "?", "answer": {"x": 1}},
        {"question": "?", "answer": "x", "anwser": "y"},
        {"question": "?", "answer": "x", "image": "missing.png"},
        {"question": "?", "answer": "x", "image": "https://example.org/a.png"},
        {"question": "?", "answer": "x", "image": "../secret.png"},
        {"question": "?", "answer": "x", "image": str(tmp_path / "secret.png")},
        {"question": "?", "answer": "x", "choices": "red"},
        {"question": "?", "answer": "x", "choices": ["red"] * 27},
        {"question": "?", "answer": "x", "id": "line 1"},
        {"question": "?", "answer": "x", "id": []},
        '{"question": "a\\ud83d", "answer": "x"}',
        [1],
    )
    found = open_one(path, images=str(tmp_path / "images"))
    assert len(found.items) == 1
    wanted = ["not JSON", "no right answer", "no 'question'", "'answer' is no text", "unknown key 'anwser'; the keys"]
    wanted += ["isn't there; give the image folder", "is a URL", "leaves the image folder", "absolute path"]
    wanted += [*2 * ["no list of up to 26"], "id 'line 1' was used before"]
    check_messages(
        found, path, [*wanted, "'id' is no text", "the question holds half of a surrogate pair", "not an object"]
    )


def test_prompts(write_lines):
    path = write_lines("own.jsonl", {"question": "{hint}?", "answer": "x"}, {"answer": "x"})
    first = open_one(path, prompt="Q: {question}\nShort.")
    assert [item.question.text for item in first.items] == ["Q: {hint}?\nShort."] and len(first.left_out) == 1
    second = open_one(path, prompt="Which?")  # for lines without a question
    assert [item.question.text for item in second.items] == ["{hint}?", "Which?"] and second.hash != first.hash
    with pytest.raises(SettingError, match="has no {question}; write {question} where"):
        open_one(write_lines("own.jsonl", {"question": "?", "answer": "x"}), prompt="Short.")


def test_fields_are_filled_in():
    for prompt, question, text in (
        ("{hint}\n{question}\n{choices}\nAnswer.", "Q?", "Q?\nAnswer."),
        ("{question} Short.", "{choices} Q?", "{choices} Q? Short."),
    ):
        assert fill(prompt, {"question": question, "hint": "", "choices": ""}) == text


def test_another_metric(write_lines):
    path = write_lines("own.jsonl", {"question": "?", "answer": "yes"}, {"question": "?", "answer": "maybe"})
    found = open_one(path, metric="yes_no")
    assert found.metric.name == "yes_no" and len(found.items) == 1
    assert "own.jsonl:2 (line 2): the right answer ['maybe'] is neither yes nor no" in found.left_out[0].message
    with pytest.raises(SettingError, match="metric 'yesno' is unknown"):
        open_one(path, metric="yesno")


def test_the_file_that_trains_can_evaluate(write_lines, put):
    put("a.png")
    ask = {"from": "human", "value": "<image>\nWhat is it?"}
    answer = {"from": "gpt", "value": "A bus."}
    records = [
        {"id": 7, "image": "a.png", "conversations": [{"from": "system", "value": "Look."}, ask, answer]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
        {"image": "a.png", "conversations": [ask, answer, {"from": "human", "value": "Why?"}, answer]},
    ]
    found = open_one(write_lines("train.jsonl", *records))
    array = open_one(write_lines("train.json", json.dumps(records, indent=1)))
    assert [item.expected for item in array.items] == [item.expected for item in found.items]
    first, second = found.items
    assert (first.question.id, first.question.text, first.expected) == ("7", "What is it?", ("A bus.",))
    assert first.question.images == ("a.png",) and second.question.images == ()
    (left,) = found.left_out
    assert "not one question with its answer; only records of a single turn" in left.message


def test_questions_without_answers_are_only_asked(write_lines, put, tmp_path):
    put("a.png", "sub/b b.PNG", ".c.png", ".d/e.png", "notes.txt")
    asked = open_one(write_lines("asked.jsonl", {"image": "a.png", "question": "What?"}), metric="cer")
    assert asked.metric is None and asked.items[0].expected == ()
    folder = open_one(tmp_path, prompt="What is it?")
    assert folder.metric is None and [item.question.id for item in folder.items] == ["a.png", "sub/b b.PNG"]
    assert folder.items[1].question.text == "What is it?" and folder.items[1].question.paths[0].endswith("sub/b b.PNG")
    with pytest.raises(SettingError, match="no 'question'; every row needs one, or give --prompt"):
        open_one(tmp_path)


def test_limits_names_and_hashes(write_lines):
    lines = [{"id": n, "question": "?", "answer": "x", "group": group} for n, group in enumerate("ababc")]
    first, second = write_lines("a/own.jsonl", *lines), write_lines("b/own.jsonl", *lines)
    whole, part = open_one(first), open_one(first, limit=3)
    assert [item.question.id for item in part.items] == ["0", "1", "2", "3"] and part.hash == whole.hash
    assert [item.question.id for item in first_groups(whole.items, 2)] == ["0", "2"]
    with pytest.raises(SettingError, match="have the same name, 'own'; rename one of them"):
        open_data_sets([str(first), str(second)])
    a, b = whole.items[:2]
    others = [
        [a],
        [a, Item(Question("1", "Why?"), b.expected, b.facts)],
        [a, Item(b.question, ("z",), b.facts)],
        [a, Item(Question("1", "?", ("c.png",), ("/x/c.png",)), b.expected, b.facts)],
        [a, Item(b.question, b.expected, {"category": "z"})],
    ]
    assert len({items_hash(each) for each in [[a, b], *others]}) == 6
    moved = Item(Question("1", "?", (), ("/elsewhere/b.png",)), b.expected, b.facts, "other.jsonl:1")
    assert items_hash([a, moved]) == items_hash([a, b])


def test_mmbench(write_tsv, in_base64, png, cache):
    same = {"hint": "", "C": "", "category": "color", "l2-category": "coarse"}
    rows = [
        {"index": "241", "question": "Which?", "A": "red", "B": "blue", "answer": "A", "image": in_base64(1), **same},
        {"index": "1000241", "question": "Which?", "A": "blue", "B": "red", "answer": "B", "image": "241", **same},
        {"index": "7", "question": "几个？", "A": "一", "B": "二", "answer": "B", "image": in_base64(2), **same},
    ]
    rows[2]["hint"] = "看图"
    path = write_tsv("MMBench_DEV_EN.tsv", rows)
    found = open_one(path)
    assert (found.metric.name, found.left_out) == ("multiple_choice", [])
    by_id = {item.question.id: item for item in found.items}
    first, rotated, chinese = (by_id[name] for name in ("241", "1000241", "7"))
    assert first.question.text == f"Which?\nA. red\nB. blue\n{LETTER}"
    assert chinese.question.text == "看图\n几个？\nA. 一\nB. 二\n请直接回答选项字母。"
    assert first.facts == {"choices": {"A": "red", "B": "blue"}, "category": "color", "group": "241"}
    assert first.question.paths == rotated.question.paths and rotated.facts["group"] == "241"
    assert open(first.question.paths[0], "rb").read() == png(1)
    (one, two) = cache.rglob("*.png")
    times = [path.stat().st_mtime_ns for path in (one, two)]
    assert open_one(path).items == found.items and [path.stat().st_mtime_ns for path in (one, two)] == times
    figures = METRICS["multiple_choice"].figures(["A", "A", "B"], [first, rotated, chinese])
    assert figures["accuracy"] == 50 and figures["accuracy_single"] == pytest.approx(200 / 3)


LAYOUTS = [
    ("POPE.tsv", {"answer": "No", "category": "random,popular"}, "yes_no",
     f"Q?\n{SHORT}", ("No",), {"category": ["random", "popular"]}),
    ("TextVQA_VAL.tsv", {"answer": str(["nokia"] * 9 + ["a"])}, "vqa_accuracy",
     f"Q? {SHORT}", ("nokia",) * 9 + ("a",), {}),
    ("DocVQA_VAL.tsv", {"answer": "['0.28', \"it's\"]"}, "anls", f"Q? {SHORT}", ("0.28", "it's"), {}),
    ("ChartQA_TEST.tsv", {"answer": "14", "split": "test_human"}, "relaxed_accuracy",
     f"Q? {SHORT}", ("14",), {"category": "test_human"}),
    ("ScienceQA_TEST.tsv", {"answer": "A", "A": "sun", "hint": "H"}, "multiple_choice",
     f"H\nQ?\nA. sun\n{LETTER}", ("A",), {"choices": {"A": "sun"}}),
    ("mine.tsv", {"answer": "sun", "A": "sun", "group": "g"}, "multiple_choice",
     "Q?\nA. sun", ("A",), {"choices": {"A": "sun"}, "group": "g"}),
]  # fmt: skip


def test_files_by_name(write_tsv, in_base64):
    for name, row, metric, text, expected, facts in LAYOUTS:
        found = open_one(write_tsv(name, [{"index": "0", "image": in_base64(), "question": "Q?", **row}]))
        (item,) = found.items
        said = (found.metric.name, item.question.text, item.expected, item.facts)
        assert said == (metric, text, expected, facts), name


def test_images_of_rows(write_tsv, in_base64, put, tmp_path):
    """A row may come before the one that holds its image, or name a file."""
    put("b.png")
    rows = [
        {"index": "5", "image": "6", "question": 'Two\nlines and a "quote"?', "answer": "x"},
        {"index": "6", "image": in_base64(), "question": "?", "answer": "y"},
        {"index": "7", "image": "gone.png", "question": "?", "answer": "z"},
        {"index": "8", "image": "b.png", "question": "?", "answer": "z"},
        {"index": "6", "image": in_base64(3), "question": "?", "answer": "y"},
    ]
    found = open_one(write_tsv("mine.tsv", rows))
    by_id = {item.question.id: item for item in found.items}
    assert by_id["5"].question.paths == by_id["6"].question.paths
    assert by_id["5"].question.text == 'Two\nlines and a "quote"?'
    assert by_id["6"].place.endswith("mine.tsv:4")  # the first row takes two lines
    assert by_id["8"].question.paths == (str(tmp_path / "b.png"),)
    assert [each.message.partition(": ")[2][:8] for each in found.left_out] == ["image '/", "id '6' w"]


def test_damaged_rows_are_named(write_tsv, in_base64):
    image = in_base64()
    rows = [
        {"index": "0", "image": image, "question": "?", "answer": "x"},
        {"index": "1", "image": image[:80] + "*" + image[81:], "question": "?", "answer": "x"},
        {"index": "2", "image": "QUJD" * 30, "question": "?", "answer": "x"},
        {"index": "3", "image": image, "question": "?", "answer": ""},
        {"index": "4", "image": "", "question": "?", "answer": "x"},
        {"index": "5", "image": image, "question": "?", "answer": "x\ty"},
    ]
    path = write_tsv("mine.tsv", rows)
    path.write_text(path.read_text().replace('"', ""))
    found = open_one(path)
    assert [item.question.id for item in found.items] == ["0"]
    wanted = ["its image isn't base64", "its image can't be read", "no 'answer'", "no image", "more cells than columns"]
    check_messages(found, path, wanted, first=3)


UNREADABLE = [
    ("a.csv", b"", "is neither .tsv nor .jsonl nor a folder"),
    ("a.jsonl", b"", "a.jsonl:1: .*it holds no records"),
    ("a.jsonl", b"[" * 100000, "a.jsonl:1: the JSON array is broken"),
    ("a.jsonl", b'{"text": "?"}', "unknown key 'text'; the keys are id"),
    ("a.jsonl", b'{"question": "?", "choices": ["x"], "answer": 1}', r"\['1'\] is none of the letters A"),
    ("a.tsv", b"question\timage\n", "has no column 'answer'; .* take dev or val"),
    ("a.tsv", b"index\tanswer\n", "has no column 'question'; its columns are index, answer"),
    ("a.tsv", b"question\tanswer\n", "has no column 'image'"),
    ("a.tsv", b"question\tanswer\timage\n\xff\tb\tc\n", "can't be read as TSV .*; save it as UTF-8 with tabs"),
]


def test_files_that_cannot_be_read(tmp_path):
    for name, content, message in UNREADABLE:
        (tmp_path / name).write_bytes(content)
        with pytest.raises((SettingError, RecordError), match=message):
            open_one(tmp_path / name)
    with pytest.raises(SettingError, match="isn't there; correct the path"):
        open_one(tmp_path / "gone.tsv")


def test_the_page_shows_the_tables():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"\n| `{name}` |" not in text] == []
    rows = [line for line in text.lower().splitlines() if line.startswith("| `")]
    for stems, (metric, prompt) in STEMS.items():
        row = next(line for line in rows if line.startswith(f"| `{stems[0]}"))
        shown = row.strip("|").split(" | ")[-1].strip()
        if shown.startswith("as "):
            other = next(line for line in rows if line.startswith(f"| `{shown[3:]}"))
            shown = other.strip("|").split(" | ")[-1]
        parts = [part.strip("` ") for part in shown.split(" ⏎ ")]
        assert f"`{metric}`" in row and parts == prompt.lower().split("\n") and all(stem in row for stem in stems)
