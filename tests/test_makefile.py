"""`make setup` with a stand-in for Python: what it shows, and that a half-finished one goes on."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

# Stands for the machine's Python and for the one in .venv; notes each call, and fails once where it is told to.
STAND_IN = """#!/bin/sh
echo "$@" >> calls.txt
case "$1 $2" in
"--version ") echo "Python 3.11.0" ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") case "$*" in *"$FAIL_AT"*) [ -n "$FAIL_AT" ] && exit 1 ;; esac; echo "Downloading something [====]" ;;
esac
exit 0
"""
OUTER_MAKE = "MAKEFLAGS MAKEOVERRIDES MFLAGS MAKELEVEL VENV PYTHON STACK".split()  # of the make that runs the tests


@pytest.fixture
def make(tmp_path):
    """make(*words) -> (the finished process, calls of Python), in a copy of what setup reads."""
    for path in (ROOT / "Makefile", *ROOT.glob("requirements*.txt"), *ROOT.glob("constraints*.txt")):
        shutil.copy(path, tmp_path)
    (tmp_path / "stand_in").write_text(STAND_IN)
    (tmp_path / "stand_in").chmod(0o755)
    outside = {key: value for key, value in os.environ.items() if key not in OUTER_MAKE}

    def call(*words, fail_at=""):
        command, env = ["make", f"PYTHON={tmp_path}/stand_in", *words], {**outside, "FAIL_AT": fail_at}
        (tmp_path / "calls.txt").write_text("")
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done, (tmp_path / "calls.txt").read_text().splitlines()

    return call


def test_setup_shows_the_downloads_and_a_half_finished_one_goes_on(make, tmp_path):
    done, _ = make("setup", fail_at="xtuner==")
    assert done.returncode != 0 and not (tmp_path / ".venv/.ready").exists()
    done, calls = make("setup")
    assert done.returncode == 0 and "Going on with .venv" in done.stdout and ".venv is ready" in done.stdout
    assert "5 GB" in done.stdout and done.stdout.count("Downloading something") == 3
    installs = [call for call in calls if call.startswith("-m pip")]
    assert len(installs) == 3 and "today" not in "".join(installs)
    assert (tmp_path / ".venv/.ready").exists() and make("setup")[1] == []  # nothing is left to do
    done, calls = make("setup", "STACK=today")
    assert (tmp_path / ".venv-today/.ready").exists() and "-m xtuner_plugins.stack" in calls, done.stderr
    assert any("-r requirements-today.txt -r requirements-dev.txt" in call for call in calls)
    assert "take pinned or today" in make("setup", "STACK=newest")[0].stderr


def test_cleaning_keeps_runs(make, tmp_path):
    for name in ("finetune_lora", "data_index"):
        (tmp_path / "work_dirs" / name).mkdir(parents=True)
    assert make("clean")[0].returncode == 0
    assert [path.name for path in (tmp_path / "work_dirs").iterdir()] == ["finetune_lora"]
