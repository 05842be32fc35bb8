"""The folder of an evaluation: one run at a time, begun and finished by the same model on the same data."""

import json
import shutil
from contextlib import closing

import pytest

from xtuner_plugins.evaluation.benchmarks import open_data_sets
from xtuner_plugins.evaluation.results import read_results
from xtuner_plugins.evaluation.run import Evaluation, open_answers
from xtuner_plugins.inference.batch_answers import Job
from xtuner_plugins.inference.opening import find_source


def test_one_run_at_a_time_goes_on_with_the_same_model_data_and_settings(toy_base, tmp_path):
    path, base, out = tmp_path / "own.jsonl", shutil.copytree(toy_base, tmp_path / "base"), tmp_path / "out"
    path.write_text("".join(json.dumps({"id": n, "question": f"{n}?", "answer": "yes"}) + "\n" for n in "ab"))

    def begin(limit=None, max_tiles=None, max_new_tokens=2):
        opening = {"device": "cpu", "max_tiles": max_tiles}
        job = Job(str(base), opening=opening, generation={"max_new_tokens": max_new_tokens})
        return Evaluation(find_source(base), job, open_data_sets(str(path), limit=limit), out, limit=limit)

    with closing(begin(limit=1)) as evaluation:
        assert len(evaluation.unanswered) == 1 == len(list(evaluation.answer()))
        assert evaluation.finish()["settings"]["limit"] == 1
        with pytest.raises(ValueError, match="is being written by another run"):
            begin()
    with closing(begin()) as evaluation:
        assert [question.id for question, _ in evaluation.answer()] == ["own/b"]
        results = evaluation.finish()
    again, rows = read_results(out)
    assert again["datasets"]["own"]["num_answered"] == results["datasets"]["own"]["num_answered"] == 2
    assert [row.question.id for row in rows] == ["a", "b"] and again["settings"]["max_new_tokens"] == 2
    assert len(again["model"]["weights"]) == len(again["preprocessing"]["hash"]) == 32
    assert (out / "report.html").is_file() and "torch" in again["versions"]

    for changed, said in ({"max_new_tokens": 3}, "max_new_tokens was 2 and is 3"), ({"max_tiles": 1}, "max_tiles was"):
        with pytest.raises(ValueError, match=f"made with other settings: {said}"):
            begin(**changed)
    for changed, said in ((path, "data own was '"), (base / "tokenizer_config.json", "weights was '")):
        kept = changed.read_text()
        changed.write_text(kept.replace("yes", "no") + "\n")
        with pytest.raises(ValueError, match=f"made with other settings: {said}"):
            begin()
        changed.write_text(kept)
    with closing(begin()) as evaluation:  # the refused ones left no lock behind
        assert evaluation.unanswered == []


def test_what_a_killed_run_did_not_finish_is_asked_again_and_files_of_others_stay(tmp_path):
    path, made_by = tmp_path / "new" / "answers.jsonl", {"model": "exports/mine", "max_new_tokens": 8}
    row = {"question": "What is it?", "images": [], "answer": "Ein Bus, grün.", "made_by": made_by}
    first, second = (json.dumps({"id": name, **row}, ensure_ascii=False).encode() + b"\n" for name in "ab")
    open_answers(path, made_by)[0].close()
    for whole, cut in ((first, second[:1]), (first, second[:10]), (first, second[:-1]), (b"", first[:20])):
        path.write_bytes(whole + cut)
        file, found = open_answers(path, made_by)
        with file:
            assert found == ({"a": row["answer"]} if whole else {})
            file.write(second)
        assert path.read_bytes() == whole + second
    for content in ("my notes", '{"id": "a"}\n', "[1]\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="not answers of this tool"):
            open_answers(path, made_by)
        assert path.read_text() == content
    path.unlink()
    for name in ("results.json", "items.jsonl", "report.html"):
        (path.parent / name).write_text("mine")
        with pytest.raises(ValueError, match=f"new holds {name} but no answers.jsonl; give another --out, or remove"):
            open_answers(path, made_by)
        assert (path.parent / name).read_text() == "mine" and not path.exists()
        (path.parent / name).unlink()
