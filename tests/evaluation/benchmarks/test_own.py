import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.evaluation.benchmarks import open_benchmark


def test_questions_of_ones_own(write_lines, put, tmp_path):
    put("a.png", "sub/b.png")
    path = write_lines(
        "own.jsonl",
        {"id": "r-17", "image": "a.png", "question": "Total?", "answer": "12.80", "category": "sums"},
        "",
        {"images": ["a.png", "sub/b.png"], "question": "Same?", "answers": ["no", "No way"], "group": 3},
        {"question": "1 + 1?", "answer": 2},
    )
    found = open_benchmark(path)
    assert (found.name, found.kind, found.metric, found.unusable) == ("own", "own", "exact_match", [])
    assert found.reason == "its first record has the keys id, image, question, answer, category: a file of your own"
    first, second, third = found.items
    assert (first.question.id, first.question.text, first.expected) == ("r-17", "Total?", ("12.80",))
    assert first.question.images == ("a.png",) and first.question.paths == (str(tmp_path / "a.png"),)
    assert first.facts == {"category": "sums"} and first.place == f"{path}:1"
    assert second.question.id == "line 3" and len(second.question.paths) == 2 and second.facts == {"group": 3}
    assert third.question.paths == () and third.expected == ("2",)


def test_choices(write_lines):
    path = write_lines(
        "own.jsonl",
        {"question": "Which?", "choices": ["red", "blue"], "answer": "B"},
        {"question": "Which?", "choices": {"C": "Cat", "D": "dog"}, "answer": "cat", "hint": "An animal."},
    )
    found = open_benchmark(path)
    assert found.metric == "multiple_choice"
    assert found.items[0].question.text == "Which?\nA. red\nB. blue" and found.items[0].expected == ("B",)
    assert found.items[1].question.text == "An animal.\nWhich?\nC. Cat\nD. dog" and found.items[1].expected == ("C",)
    assert found.items[1].facts == {"choices": {"C": "Cat", "D": "dog"}}


def test_an_index_is_no_answer(write_lines, put):
    """Files of ScienceQA have one, and a hint."""
    put("a.png")
    with pytest.raises(SettingError, match=r"the answer \['1'\] is none of the letters A, B"):
        open_benchmark(
            write_lines("own.jsonl", {"question": "?", "image": "a.png", "choices": ["x", "y"], "answer": 1})
        )


def test_what_cannot_be_used_is_named(write_lines, put):
    put("a.png")
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
        {"question": "?", "answer": "x", "image": "a.png", "images": []},
        {"question": "?", "answer": "x", "choices": "red"},
        {"question": "?", "answer": "x", "id": "line 1"},
        [1],
    )
    found = open_benchmark(path)
    assert len(found.items) == 1
    messages = [unusable.message for unusable in found.unusable]
    assert all(f"{path}:{number}" in text for number, text in zip(range(2, 13), messages, strict=True)), messages
    wanted = [
        "not JSON",
        "no right answer",
        "no 'question'",
        "'answer' is no text",
        "unknown key 'anwser'; the keys are",
    ]
    wanted += ["isn't there; give the image folder", "is a URL", "both 'image' and 'images'", "'choices' is no list"]
    wanted += ["id 'line 1' was used before", "not an object"]
    for want, message in zip(wanted, messages, strict=True):
        assert want in message


def test_a_path_stays_in_the_image_folder(write_lines, put, tmp_path):
    put("secret.png", "images/a.png")
    path = write_lines(
        "own.jsonl",
        {"question": "?", "answer": "x", "image": "a.png"},
        {"question": "?", "answer": "x", "image": "../secret.png"},
        {"question": "?", "answer": "x", "image": str(tmp_path / "secret.png")},
    )
    found = open_benchmark(path, images=tmp_path / "images")
    assert len(found.items) == 1
    assert ["leaves the image folder" in found.unusable[0].message, "absolute path" in found.unusable[1].message] == [
        True
    ] * 2


def test_a_prompt_of_ones_own(write_lines):
    path = write_lines("own.jsonl", {"question": "{hint}?", "answer": "x"})
    text = open_benchmark(path, prompt="Q: {question}\nShort.").items[0].question.text
    assert text == "Q: {hint}?\nShort."
    with pytest.raises(SettingError, match="has no {question}; write {question} where"):
        open_benchmark(path, prompt="Short.")


def test_another_metric(write_lines):
    path = write_lines("own.jsonl", {"question": "?", "answer": "yes"}, {"question": "?", "answer": "maybe"})
    found = open_benchmark(path, metric="yes_no")
    assert found.metric == "yes_no" and len(found.items) == 1
    assert "own.jsonl:2 (line 2): the right answer ['maybe'] is neither yes nor no" in found.unusable[0].message
    with pytest.raises(SettingError, match="did you mean yes_no"):
        open_benchmark(path, metric="yesno")


def test_the_file_that_trains_can_evaluate(write_lines, put):
    put("a.png")
    ask = {"from": "human", "value": "<image>\nWhat is it?"}
    answer = {"from": "gpt", "value": "A bus."}
    found = open_benchmark(
        write_lines(
            "train.jsonl",
            {"id": 7, "image": "a.png", "conversations": [{"from": "system", "value": "Look."}, ask, answer]},
            {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
            {"image": "a.png", "conversations": [ask, answer, {"from": "human", "value": "Why?"}, answer]},
        )
    )
    first, second = found.items
    assert (first.question.id, first.question.text, first.expected) == ("7", "What is it?", ("A bus.",))
    assert first.question.images == ("a.png",) and second.question.images == ()
    (left,) = found.unusable
    assert "not one question with its answer; only records of a single turn" in left.message
