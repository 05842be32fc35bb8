"""The preference demo: its verdict, and what it says where the quick start has not run."""

import json

import pytest

from xtuner_plugins.toy import preference
from xtuner_plugins.toy.preference import AFTER, BEFORE, summarize, verdict
from xtuner_plugins.toy.preference_data import UNREADABLE, UNREADABLE_KIND


def questions(readable=10, small=10):
    facts = [("number", str(10 + index)) for index in range(readable)] + [(UNREADABLE_KIND, UNREADABLE)] * small
    return [
        {"id": str(index), "image": f"{index}.jpg", "kind": kind, "question": "?", "answer": answer}
        for index, (kind, answer) in enumerate(facts)
    ]


def test_verdict():
    asked = questions()
    right = {q["id"]: q["answer"] for q in asked}
    before = {**right, **{q["id"]: "55" for q in asked if q["kind"] == UNREADABLE_KIND}}
    for guessed, misread, reached in ((0, 0, [True, True]), (2, 0, [False, True]), (0, 1, [True, False])):
        wrong = [q["id"] for q in asked[:misread]] + [q["id"] for q in asked[10 : 10 + guessed]]
        result = summarize(asked, {BEFORE: before, AFTER: {**right, **dict.fromkeys(wrong, "55")}})
        assert [good for good, _ in verdict(result)] == reached
    assert "0.0% before" in verdict(result)[0][1] and result["accuracy"][BEFORE]["number"] == 1
    assert UNREADABLE_KIND in result["table"] and json.dumps(result)


def test_without_the_quick_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert preference.main([]) == 1 and "run this in the repository's root" in capsys.readouterr().err
    (tmp_path / preference.CONFIG).parent.mkdir(parents=True)
    (tmp_path / preference.CONFIG).touch()
    assert preference.main([]) == 1 and "run `make quickstart` first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        preference.main(["--scale", "2"])
