"""Answers are appended as they come; a run goes on with the file of a killed one, and touches no other."""

import json
from contextlib import closing

import pytest

from xtuner_plugins.inference.answer_file import AnswerFile
from xtuner_plugins.inference.questions import Question

MADE_BY = {"model": "exports/mine", "max_new_tokens": 8}
BUS, CAT = (Question(name, "What is it?", (name,), (f"/x/{name}",)) for name in ("bus.jpg", "cat.jpg"))


@pytest.fixture()
def path(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    with closing(AnswerFile(path, MADE_BY)) as file:
        file.add(BUS, "Ein Bus, grün.")
    return path


def test_a_line_per_answer(path):
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "id": "bus.jpg",
        "images": ["bus.jpg"],
        "question": "What is it?",
        "answer": "Ein Bus, grün.",
        "made_by": MADE_BY,
    }


def test_what_a_killed_run_did_not_finish_is_asked_again(path):
    with closing(AnswerFile(path, MADE_BY)) as file:
        file.add(CAT, "A cat.")
    first, second = path.read_bytes().splitlines(keepends=True)
    for whole, cut in ((first, second[:1]), (first, second[:10]), (first, second[:-1]), (b"", first[:20])):
        path.write_bytes(whole + cut)
        with closing(AnswerFile(path, MADE_BY)) as file:
            assert (file.has(BUS), file.has(CAT)) == (bool(whole), False)
            file.add(CAT, "A cat.")
        assert path.read_bytes() == whole + second


def test_other_settings_and_other_questions_are_refused(path):
    with pytest.raises(ValueError, match="max_new_tokens was 8 and is 9; give the same ones, or another --out"):
        AnswerFile(path, {**MADE_BY, "max_new_tokens": 9})
    with (
        closing(AnswerFile(path, MADE_BY)) as file,
        pytest.raises(ValueError, match="another question under id 'bus.jpg'"),
    ):
        file.has(Question("bus.jpg", "Which?", ("bus.jpg",)))


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    for content in ("my notes\n", "my notes", '{"id": "a"}\n', "[1]\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="not answers of this tool"):
            AnswerFile(path, MADE_BY)
        assert path.read_text() == content


def test_one_run_at_a_time(path):
    with closing(AnswerFile(path, MADE_BY)), pytest.raises(ValueError, match="is being written by another run"):
        AnswerFile(path, MADE_BY)
