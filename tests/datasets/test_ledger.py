"""The ledger's file over epochs and resumed runs; whole runs are in tests/engine/hooks/test_ledger.py."""

import json
import stat

import pytest

from xtuner_plugins.datasets import ledger
from xtuner_plugins.datasets.ledger import Ledger, TooManyBadSamples


def bad(index, reason="image_missing"):
    return {"dataset": "d", "index": index, "dropped": reason, "message": f"f:{index}: line\u2028separators"}


def entries(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def written(tmp_path):
    """Epoch 0 of six samples is whole, epoch 1 has begun: samples 2 and 5 are left out of it, one of them late."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for epoch in (0, 1):
        ledger.account(epoch, 1, [bad(2)])
        ledger.account(epoch, 3, [bad(5)])
        if epoch == 0:
            assert ledger.close_epoch(0, 6) == {"epoch": 0, "trained": 4, "dropped": 2, "total": 6}
    return tmp_path / "ledger.jsonl"


def test_going_on_within_an_epoch(written):
    """What lies behind is counted, what will be met again is taken out, a line that a crash cut off too."""
    with written.open("a") as file:
        file.write('{"epoch": 1, "data')
    ledger = Ledger(written)
    ledger.begin(1, [0, 2, 4])
    assert [(entry["epoch"], entry.get("index")) for entry in entries(written)] == [(0, 2), (0, 5), (0, None), (1, 2)]
    assert (ledger.trained[1], ledger.dropped[1]) == (2, 1)
    assert stat.S_IMODE(written.stat().st_mode) == 0o644
    ledger.account(1, 2, [bad(5)])
    assert ledger.close_epoch(1, 6) == {"epoch": 1, "trained": 4, "dropped": 2, "total": 6}


def test_going_on_at_the_start_of_an_epoch(written):
    Ledger(written).begin(1, [])
    assert [(entry["epoch"], entry.get("index")) for entry in entries(written)] == [(0, 2), (0, 5), (0, None)]


def test_going_on_before_an_epoch_that_was_closed(written):
    """Its line of sums goes, too: it is written again."""
    ledger = Ledger(written)
    ledger.begin(0, [2, 3])
    assert [(entry["epoch"], entry.get("index")) for entry in entries(written)] == [(0, 2)]
    assert (ledger.trained[0], ledger.dropped[0]) == (1, 1)


def test_a_new_run_begins_a_new_file(written):
    before = written.read_text()
    Ledger(written).begin(0, [])
    assert not written.exists() and written.with_name("ledger.previous.jsonl").read_text() == before


def test_going_on_without_the_file(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.begin(1, [0, 2, 4])
    assert ledger.trained[1] == 3 and not ledger.path.exists()


def test_the_ceiling_is_of_an_epoch_and_of_what_is_broken(monkeypatch):
    monkeypatch.setattr(ledger, "MAX_BAD_SAMPLES", 2)
    own = Ledger(None)
    for epoch in range(3):
        own.account(epoch, 1, [bad(1), bad(2), *(bad(9, reason) for reason in ("too_long", "rejected") * 5)])
        own.close_epoch(epoch, 13)
    with pytest.raises(TooManyBadSamples, match="3 samples can't be used, .* beyond 2 per"):
        own.account(3, 0, [bad(1), bad(2), bad(3)])


def test_the_ceiling_counts_all_ranks_together(tmp_path, monkeypatch):
    """Each rank has a ledger of its own over one file; resumed runs count what lies behind them."""
    monkeypatch.setattr(ledger, "MAX_BAD_SAMPLES", 3)
    first, second = (Ledger(tmp_path / "ledger.jsonl") for _ in range(2))
    first.account(0, 1, [bad(1), bad(2, "too_long")])
    second.account(0, 1, [bad(3)])
    second.account(1, 1, [bad(3)])  # of the next epoch
    first.account(0, 1, [bad(4)])
    with pytest.raises(TooManyBadSamples, match="4 samples can't be used, .* beyond 3 per"):
        second.account(0, 1, [bad(5)])
    resumed = Ledger(tmp_path / "ledger.jsonl")
    resumed.begin(0, [1, 2, 3])
    resumed.account(0, 1, [bad(4)])
    with pytest.raises(TooManyBadSamples, match="4 samples"):
        resumed.account(0, 0, [bad(5), bad(6)])


def test_the_message_has_the_last_sample_and_the_remedy(monkeypatch):
    monkeypatch.setattr(ledger, "MAX_BAD_SAMPLES", 1)
    own = Ledger(None)
    own.account(0, 3, [bad(1), bad(2, "too_long")])
    with pytest.raises(TooManyBadSamples, match="beyond 1 per.*f:7: line.*check_data"):
        own.account(0, 3, [bad(7)])
