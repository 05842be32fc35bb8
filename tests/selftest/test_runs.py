"""Forked training runs: most tests of the engine use them; here, how their ends are told."""

from xtuner_plugins.selftest.runs import Run, logged


def test_a_run_is_good_when_every_rank_is():
    assert Run([0, 0], "").ok and not Run([0, -9], "").ok
    assert Run([1], "a\nerror (rank 0): b\nc").errors == ["error (rank 0): b"]


def test_the_newest_log_is_read(tmp_path):
    for stamp, loss in (("20260101_000000", 1.0), ("20260101_000001", 2.0)):
        path = tmp_path / stamp / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"loss": {loss}}}\n{{"lr": 1}}\n')
    assert logged(tmp_path) == [2.0]
