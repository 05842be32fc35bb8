"""The preference demo: its verdict, and what it says where the quick start has not run."""

import pytest

from xtuner_plugins.toy import evaluate, preference
from xtuner_plugins.toy.data import UNREADABLE, UNREADABLE_KIND
from xtuner_plugins.toy.preference import AFTER, BEFORE, verdict


def test_verdict():
    facts = [("number", str(10 + index)) for index in range(10)] + [(UNREADABLE_KIND, UNREADABLE)] * 10
    asked = [{"id": str(index), "kind": kind, "answer": answer} for index, (kind, answer) in enumerate(facts)]
    right = {question["id"]: question["answer"] for question in asked}
    before = {name: "55" if answer == UNREADABLE else answer for name, answer in right.items()}
    for wrong, reached in ((("10",), [True, True]), (("10", "11"), [False, True]), (("0",), [True, False])):
        after = {**right, **dict.fromkeys(wrong, "55")}
        result = evaluate.summary(asked, {BEFORE: before, AFTER: after}, ["number"])
        assert [good for good, _ in verdict(result)] == reached
    assert "0.0% before, 100.0% after" in verdict(result)[0][1] and result["accuracy"][BEFORE]["number"] == 1
    assert verdict(result)[1][1].startswith("points lost on readable signs: 10.0 ")


def test_without_the_quick_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert preference.main([]) == 1 and "run this in the repository's root" in capsys.readouterr().err
    (tmp_path / preference.CONFIG).parent.mkdir(parents=True)
    (tmp_path / preference.CONFIG).touch()
    assert preference.main([]) == 1 and "run `make quickstart` first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        preference.main(["--scale", "2"])
