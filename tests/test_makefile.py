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
OUTER_MAKE = (
    "MAKEFLAGS",
    "MAKEOVERRIDES",
    "MFLAGS",
    "MAKELEVEL",
    "VENV",
    "PYTHON",
    "STACK",
)  # of the make that runs the tests


@pytest.fixture
def project(tmp_path):
    for path in (ROOT / "Makefile", *ROOT.glob("requirements*.txt"), *ROOT.glob("constraints*.txt")):
        shutil.copy(path, tmp_path)
    (tmp_path / "stand_in").write_text(STAND_IN)
    (tmp_path / "stand_in").chmod(0o755)
    return tmp_path


def make(folder, *targets, fail_at=""):
    env = {key: value for key, value in os.environ.items() if key not in OUTER_MAKE}
    done = subprocess.run(
        ["make", f"PYTHON={folder}/stand_in", *targets],
        cwd=folder,
        env={**env, "FAIL_AT": fail_at},
        capture_output=True,
        text=True,
    )
    calls = (folder / "calls.txt").read_text().splitlines() if (folder / "calls.txt").exists() else []
    (folder / "calls.txt").unlink(missing_ok=True)
    return done, calls


def test_setup_says_what_it_does_and_shows_the_downloads(project):
    done, calls = make(project, "setup")
    assert done.returncode == 0 and ".venv is ready" in done.stdout
    assert "5 GB" in done.stdout and done.stdout.count("Downloading something") == 3
    installs = [call for call in calls if call.startswith("-m pip")]
    assert len(installs) == 3 and not any(" -q" in call for call in installs)
    assert make(project, "setup")[1] == []  # nothing is left to do


def test_a_half_finished_setup_goes_on(project):
    done, _ = make(project, "setup", fail_at="xtuner==")
    assert done.returncode != 0 and not (project / ".venv/.ready").exists()
    done, calls = make(project, "setup")
    assert done.returncode == 0 and "Going on with .venv" in done.stdout
    assert not any("--clear" in call for call in calls) and (project / ".venv/.ready").exists()


def test_each_stack_has_its_own_environment(project):
    for stack, folder, files in (
        ("pinned", ".venv", "requirements.txt"),
        ("today", ".venv-today", "requirements-today.txt"),
    ):
        done, calls = make(project, "setup", f"STACK={stack}")
        assert done.returncode == 0 and (project / folder / ".ready").exists(), done.stderr
        assert any(f"-r {files} -r requirements-dev.txt" in call for call in calls)
        assert any("-m xtuner_plugins.stack" in call for call in calls) == (stack == "today")
    assert "take pinned or today" in make(project, "setup", "STACK=newest")[0].stderr


def test_cleaning_keeps_runs(project):
    run = project / "work_dirs/finetune_lora/iter_10.pth"
    run.parent.mkdir(parents=True)
    run.touch()
    (project / "work_dirs/data_index").mkdir()
    assert make(project, "clean")[0].returncode == 0
    assert run.exists() and not (project / "work_dirs/data_index").exists()
