"""The quick start: a failing command ends it, its verdict tells right from wrong, earlier results are kept."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.toy import quickstart
from xtuner_plugins.toy.quickstart import StageError, keep_earlier, summarize, verdict


def test_a_failing_command_ends_the_chain_with_its_last_words(tmp_path, capfd):
    chain = quickstart.Chain(tmp_path, tmp_path)
    chain.run("fine", ["-c", "print('wrote it'); print('What this run trains:')"])
    said = capfd.readouterr().out
    assert "wrote it" in said and "What" not in said.replace("print('What", "") and chain.seconds["fine"] < HANGS_AFTER
    with pytest.raises(StageError, match="exit status 3") as caught:
        chain.run("bad", ["-c", "import time; time.sleep(60)"], ["-c", "print('why'); raise SystemExit(3)"])
    assert "why" in str(caught.value) and quickstart.progress_line("error: no such file\n") == "error: no such file"


def test_verdict_sees_a_wrong_number_and_a_differing_export():
    questions = [{"id": str(i), "kind": "number", "answer": "47"} for i in range(10)]
    questions[0] |= {"kind": "colour", "answer": "red"}
    right = {q["id"]: f" {q['answer'].title()}. " for q in questions}
    wrong = {**dict.fromkeys(right, "4"), "0": "red"}
    good, bad = {"tiling": right, "one tile": wrong}, {"tiling": wrong, "one tile": wrong}
    differing = {**bad, "tiling": {**wrong, "3": "12"}}
    for trained, exported, control, reached in (
        (bad, differing, wrong, [False, False, False, False]),
        (good, good, right, [True, True, False, True]),  # tiles gained nothing
        (good, good, wrong, [True, True, True, True]),
    ):
        result = summarize(questions, trained, exported, control)
        assert [is_reached for is_reached, _ in verdict(result)] == reached
        assert result["num_answers_that_differ"] == (exported is differing)
    number, colour = (line.split() for line in result["table"].splitlines()[1:])
    assert number[:4] == ["number", "yes", "9", "100.0%"] and colour[:5] == ["colour", "no", "1", "100.0%", "100.0%"]


def test_earlier_results_are_kept_each_under_its_own_name(tmp_path):
    out = tmp_path / "quickstart"
    assert keep_earlier(out) is None
    for number in (1, 2):
        out.mkdir()
        (out / "mine.txt").write_text(str(number))
        assert keep_earlier(out) == tmp_path / f"quickstart.{number}"
    assert [(tmp_path / f"quickstart.{n}/mine.txt").read_text() for n in (1, 2)] == ["1", "2"]
    out.symlink_to(tmp_path / "quickstart.1")  # a link is renamed, not what it leads to
    assert keep_earlier(out).is_symlink() and (tmp_path / "quickstart.1/mine.txt").exists()


@pytest.mark.release
def test_whole_chain_in_short(tmp_path):
    """The real commands from end to end, on a copy of the sources so that a user's own run stays."""
    for folder in ("configs", "tools", "xtuner_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "xtuner_plugins.toy.quickstart", "--scale", "0.02"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = tmp_path / "work_dirs/quickstart"
    result = json.loads((out / "results.json").read_text())
    assert result["num_answers_that_differ"] == 0 < result["num_answers"] and "needs resolution" in done.stdout
    for name in ("losses.png", "model/config.json", "model/modeling_internvl_chat.py"):
        assert (out / name).stat().st_size > 0
