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


def test_what_a_killed_run_did_not_finish_is_asked_again(path):
    with closing(AnswerFile(path, MADE_BY)) as file:
        file.add(CAT, "A cat.")
    first, second = path.read_bytes().splitlines(keepends=True)
    row = {"id": "bus.jpg", "images": ["bus.jpg"], "question": "What is it?", "answer": "Ein Bus, grün."}
    assert json.loads(first) == {**row, "made_by": MADE_BY}
    for whole, cut in ((first, second[:1]), (first, second[:10]), (first, second[:-1]), (b"", first[:20])):
        path.write_bytes(whole + cut)
        with closing(AnswerFile(path, MADE_BY)) as file:
            assert (file.has(BUS), file.has(CAT)) == (bool(whole), False)
            file.add(CAT, "A cat.")
        assert path.read_bytes() == whole + second


def test_files_of_others_are_refused_and_left_as_they_are(path, tmp_path):
    with pytest.raises(ValueError, match="max_new_tokens was 8 and is 9; give the same ones, or another --out"):
        AnswerFile(path, {**MADE_BY, "max_new_tokens": 9})
    with closing(AnswerFile(path, MADE_BY)) as file:
        with pytest.raises(ValueError, match="is being written by another run"):
            AnswerFile(path, MADE_BY)
        with pytest.raises(ValueError, match="another question under id 'bus.jpg'"):
            file.has(Question("bus.jpg", "Which?", ("bus.jpg",)))
    for content in ("my notes\n", "my notes", '{"id": "a"}\n', "[1]\n"):
        (tmp_path / "notes.txt").write_text(content)
        with pytest.raises(ValueError, match="not answers of this tool"):
            AnswerFile(tmp_path / "notes.txt", MADE_BY)
        assert (tmp_path / "notes.txt").read_text() == content
