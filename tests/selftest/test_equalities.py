"""Verdicts of rows, and runs that fail (whole tables: tests/tools/test_selftest.py)."""

import pytest

from xtuner_plugins.selftest.equalities import Row, RunFailed, _last_words, _log_gaps, measure
from xtuner_plugins.selftest.runs import Run


@pytest.mark.parametrize(
    "row, verdict, details",
    [
        (Row("", [("loss", 1e-7, 1e-6)]), "pass", "loss 1.0e-07 (1e-06)"),
        (Row("", [("loss", 1e-7, 1e-6), ("tensors", 1, 0)]), "FAIL", "loss 1.0e-07 (1e-06); tensors 1 (0)"),
        (Row("", [("loss", float("nan"), 1e-6)]), "FAIL", "loss nan (1e-06)"),
        (Row(""), "FAIL", ""),  # nothing measured is no pass
        (Row("", [("loss", 0.0, 1e-6)], failed="it hung"), "FAIL", "loss 0 (1e-06); it hung"),
        (Row("", skipped="quantized"), "skipped", "quantized"),
    ],
)
def test_verdicts(row, verdict, details):
    assert (row.verdict, row.details) == (verdict, details)


def test_a_failed_run_fails_its_row():
    def fail():
        raise RunFailed("boom")

    row = measure("a = b", fail)
    assert (row.name, row.verdict, row.failed) == ("a = b", "FAIL", "boom") and row.seconds >= 0


def test_gaps_are_those_of_the_logs(tmp_path):
    for name, loss in (("a", 2.0), ("b", 2.002)):
        path = tmp_path / name / "1" / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"loss": 4.0, "grad_norm": {loss / 2}}}\n{{"loss": {loss}, "grad_norm": 1.0}}\n')
    first, norm, later = _log_gaps(tmp_path / "b", tmp_path / "a")
    assert first[1] == 0 and norm[1] == pytest.approx(1e-3) and later[1] == pytest.approx(1e-3)


def test_last_words():
    assert _last_words(Run([1], "x\nerror (rank 0): no\nbye")) == "error (rank 0): no"
    assert _last_words(Run([1], "Traceback\nTypeError: 'str'\n\n")) == "TypeError: 'str'"
    assert "hung or was killed" in _last_words(Run([-9, 1], "x"))
