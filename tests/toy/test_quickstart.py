"""The quick start: a failing command ends it, its verdict tells right from wrong, earlier results are kept."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER
from xtuner_plugins.toy.quickstart import (
    Chain,
    StageError,
    keep_earlier,
    last_checkpoint,
    progress_line,
    summarize,
    verdict,
)

ROOT = Path(__file__).resolve().parents[2]


def test_progress_beside_steps():  # of those see `test_notebooks.py`
    assert progress_line("error: no such file\n") == "error: no such file"
    assert progress_line("What this run trains:") is None


def test_a_failing_command_ends_the_chain_with_its_last_words(tmp_path, capfd):
    chain = Chain(tmp_path, tmp_path, threads=1)
    chain.run("fine", ["-c", "print('wrote it')"])
    assert "wrote it" in capfd.readouterr().out and chain.seconds["fine"] < HANGS_AFTER
    with pytest.raises(StageError, match="exit status 3") as caught:
        chain.run("bad", ["-c", "import time; time.sleep(60)"], ["-c", "print('why'); raise SystemExit(3)"])
    assert "why" in str(caught.value)


def test_a_run_without_checkpoint_is_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(StageError, match="holds no checkpoint"):
            last_checkpoint(tmp_path)
        (tmp_path / "last_checkpoint").write_text(str(tmp_path / "gone.pth"))


def test_verdict_sees_a_wrong_number_and_a_differing_export():
    questions = [{"id": str(i), "kind": "number", "answer": "47"} for i in range(10)]
    right, wrong = {q["id"]: "47" for q in questions}, {q["id"]: "11" for q in questions}
    good = summarize(questions, {"tiling": right, "one tile": wrong}, {"tiling": right, "one tile": wrong}, wrong)
    assert [reached for reached, _ in verdict(good)] == [True, True, True, True]
    bad = summarize(
        questions, {"tiling": wrong, "one tile": wrong}, {"tiling": {**wrong, "3": "12"}, "one tile": wrong}, wrong
    )
    assert [reached for reached, _ in verdict(bad)] == [False, False, False, False]
    level = summarize(questions, {"tiling": right, "one tile": wrong}, {"tiling": right, "one tile": wrong}, right)
    assert [reached for reached, _ in verdict(level)] == [True, True, False, True]  # tiles gained nothing
    assert bad["num_answers_that_differ"] == 1


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
    out = tmp_path / "work_dirs/quickstart"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("an earlier one")
    command = [sys.executable, "-m", "xtuner_plugins.toy.quickstart", "--scale", "0.02", "--threads", "1"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "work_dirs/quickstart.1/mine.txt").exists() and "is now work_dirs/quickstart.1" in done.stdout
    result = json.loads((out / "results.json").read_text())
    assert result["num_answers_that_differ"] == 0 < result["num_answers"]
    for name in ("losses.png", "model/config.json", "model/modeling_internvl_chat.py"):
        assert (out / name).stat().st_size > 0
    assert "needs resolution" in done.stdout
