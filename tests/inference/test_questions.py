"""Questions about the images of a folder, and those of a file; what can't be asked is named."""

import json

import pytest

from xtuner_plugins.inference.questions import Question, Unusable, from_file, from_folder


def test_a_folder_is_asked_in_the_order_of_its_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b b.PNG", "a.jpg", "sub/c.webp", "notes.txt", ".d.jpg", ".hidden/e.jpg"):
        (tmp_path / name).write_text("")
    found = from_folder(tmp_path, "What?")
    assert [question.id for question in found] == ["a.jpg", "b b.PNG", "sub/c.webp"]
    assert found[2] == Question("sub/c.webp", "What?", ("sub/c.webp",), (str(tmp_path / "sub/c.webp"),))


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_the_lines_of_a_file(tmp_path):
    lines = ({"id": 7, "image": "a.jpg", "question": "What?"}, "", {"images": ["a.jpg", "b.jpg"]}, {"question": "Who?"})
    first, second, third = from_file(write(tmp_path / "q.jsonl", *lines), tmp_path, "Which?")
    assert first == Question("7", "What?", ("a.jpg",), (str(tmp_path / "a.jpg"),))
    assert (second.id, second.text, second.images) == ("line 3", "Which?", ("a.jpg", "b.jpg"))
    assert third.images == ()


WRONG = [
    ("[1]", "not an object"),
    ("{broken", "JSON"),
    ({"image": "a.jpg"}, "no question; write one, or give --prompt"),
    ({"image": "../a.jpg", "question": "?"}, "leaves the image folder"),
    ({"image": "https://a/b.jpg", "question": "?"}, "is a URL"),
    ({"image": 3, "question": "?"}, "3 is no file name"),
    ({"image": "a", "images": ["b"], "question": "?"}, "both 'image' and 'images'"),
    ({"imge": "a.jpg", "question": "?"}, "unknown key 'imge'"),
    ({"id": [], "question": "?"}, "id [] is no text or number"),
]


@pytest.mark.parametrize("line, said", WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_line_is_named_and_the_next_is_read(line, said, tmp_path):
    wrong, right = from_file(write(tmp_path / "q.jsonl", line, {"question": "Who?"}), tmp_path, None)
    assert isinstance(wrong, Unusable) and wrong.message.startswith(f"{tmp_path}/q.jsonl:1") and said in wrong.message
    assert right.text == "Who?"


def test_an_id_is_used_once(tmp_path):
    same = {"id": "a", "question": "Who?"}
    first, second = from_file(write(tmp_path / "q.jsonl", same, same), None, None)
    assert first.id == "a" and "q.jsonl:2: id 'a' was used before" in second.message
