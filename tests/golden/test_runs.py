"""Training gives the numbers that are kept, step by step; a difference is named, and a change needs a reason."""

import pytest

from tests.conftest import ROOT
from tests.golden import runs


@pytest.mark.slow
def test_every_step_is_the_kept_one(run_tool):
    done = run_tool("-m", "tests.golden.runs")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.endswith(": equal")] == [f"{n}: equal" for n in runs.RUNS]


def test_the_changelog_names_the_kept_numbers():
    assert runs.revision() in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


KEPT = "# here\nstep\tbatch\ttiles\tlr\tloss\n1\tab\t7\t0.1/0.2\t2.5\n2\tcd\t9\t0.1/0.2\t1.5\n"


CHANGES = [
    ("", "", None, None),
    ("1.5", "1.500001", "step 2, loss: 1.500001, kept 1.5", None),
    ("1.5", "1.50001", "step 2, loss: 1.50001, kept 1.5", "step 2, loss: 1.50001, kept 1.5"),
    ("cd\t9", "ce\t8", "step 2, batch: ce, kept cd", "step 2, batch: ce, kept cd"),
    ("7\t0.1/0.2", "7\t0.1/0.3", "step 1, lr: 0.1/0.3, kept 0.1/0.2", "step 1, lr: 0.1/0.3, kept 0.1/0.2"),
    ("7\t0.1/0.2", "7\t0.1", "step 1, lr: 0.1, kept 0.1/0.2", "step 1, lr: 0.1, kept 0.1/0.2"),
    ("2\tcd\t9\t0.1/0.2\t1.5\n", "", "1 steps, kept 2", "1 steps, kept 2"),
]


def test_the_first_difference_is_named():
    """On the machine of the kept table, and on another."""
    for old, new, same, near in CHANGES:
        assert runs.difference(KEPT, KEPT.replace(old, new)) == same
        assert runs.difference(KEPT, KEPT.replace(old, new).replace("here", "there")) == near
