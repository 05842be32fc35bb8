"""The ledger's file over epochs and resumed runs; whole runs are in tests/engine/hooks/test_ledger.py."""

import json

import pytest

from xtuner_plugins.datasets.ledger import Ledger, TooManyBadSamples


def bad(index, reason="image_missing"):
    return {"dataset": "d", "index": index, "dropped": reason, "message": f"f:{index}: line\u2028separators"}


RESUMED = [  # epoch, samples taken before; entries (epoch, index) that stay, numbers of trained and dropped ones
    (1, [0, 2, 4], [(0, 2), (0, 5), (0, None), (1, 2)], (2, 1)),
    (1, [], [(0, 2), (0, 5), (0, None)], (0, 0)),
    (0, [2, 3], [(0, 2)], (1, 1)),  # the line of sums goes, too: it is written again
]


def test_what_lies_behind_stays_and_what_will_be_met_again_goes(tmp_path):
    path = tmp_path / "ledger.jsonl"
    written = Ledger(path)
    for epoch in (0, 1):  # of six samples; the second has begun: 2 and 5 are left out
        written.account(epoch, 1, [bad(2)])
        written.account(epoch, 3, [bad(5)])
        if epoch == 0:
            assert written.close_epoch(0, 6) == {"epoch": 0, "trained": 4, "dropped": 2, "total": 6}
    before = path.read_text("utf-8") + '{"epoch": 1, "data'  # a crash has cut the last line off
    for epoch, taken, kept, (trained, dropped) in RESUMED:
        path.write_text(before, "utf-8")
        resumed = Ledger(path)
        resumed.begin(epoch, taken)
        entries = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        assert [(entry["epoch"], entry.get("index")) for entry in entries] == kept
        assert (resumed.trained[epoch], resumed.dropped[epoch]) == (trained, dropped)
        resumed.account(epoch, 2, [bad(5)])
        assert resumed.close_epoch(epoch, 6) == dict(epoch=epoch, trained=trained + 2, dropped=dropped + 1, total=6)
    Ledger(path).begin(0, [])  # a new run begins a new file
    assert not path.exists() and path.with_name("ledger.previous.jsonl").exists()
    (fresh := Ledger(path)).begin(1, [0, 2, 4])  # without the file
    assert fresh.trained[1] == 3 and not path.exists()
    fresh.account(1, 0, [{"dropped": "too_long", "message": ""}])
    assert json.loads(path.read_text("utf-8")).items() >= {"dataset": "", "index": -1}.items()


def test_the_ceiling_is_of_an_epoch_and_of_what_is_broken_on_all_ranks_together(tmp_path, monkeypatch):
    """Each rank has a ledger of its own over one file; resumed runs count what lies behind them."""
    monkeypatch.setattr("xtuner_plugins.datasets.ledger.MAX_BAD_SAMPLES", 3)
    own = Ledger(None)
    for epoch in range(3):
        own.account(epoch, 1, [bad(1), bad(2), bad(3), *(bad(9, reason) for reason in ("too_long", "rejected") * 5)])
        own.close_epoch(epoch, 14)
    first, second, resumed = (Ledger(tmp_path / "ledger.jsonl") for _ in range(3))
    first.account(0, 1, [bad(1), bad(2, "too_long")])
    second.account(0, 1, [bad(3)])
    second.account(1, 1, [bad(3)])  # of the next epoch
    first.account(0, 1, [bad(4)])
    with pytest.raises(TooManyBadSamples, match="4 samples can't be used, .* beyond 3 per.*f:5: line.*check_data"):
        second.account(0, 1, [bad(5)])
    resumed.begin(0, [1, 2, 3])
    resumed.account(0, 1, [bad(4)])
    with pytest.raises(TooManyBadSamples, match="4 samples"):
        resumed.account(0, 0, [bad(5), bad(6)])
    batch = {"labels": 1, "dropped": [bad(4)]}
    with pytest.raises(TooManyBadSamples, match="4 samples"):
        own.take_from(batch)
    assert batch == {"labels": 1} and own.dropped[0] == 14
