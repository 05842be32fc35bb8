"""In real runs every index of an epoch is either trained on or in the ledger, exactly once."""

import json
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from mmengine.runner import IterBasedTrainLoop

from xtuner_plugins.engine import LedgerHook, StateHook

from ..forked import fault, write_dataset

LEFT_OUT = {1: "image_missing", 9: "image_unreadable", 17: "too_long"}
STEP = "engine.run.loops.PlannedTrainLoop.run_iter"
SKIP = {"train_dataloader.dataset.on_bad_sample": "skip"}


@pytest.fixture
def data(tmp_path):
    """48 records of which three can't be used: two are known before the first step, one only when it is opened."""
    path, images = write_dataset(tmp_path / "data", num_samples=45)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    turns = records[0]["conversations"]
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:100])  # the header is whole
    wrong = [
        {"image": "none.png", "conversations": turns},
        {"image": "cut.png", "conversations": turns},
        {"conversations": [{"from": "human", "value": "word " * 3000}, {"from": "gpt", "value": "Long."}]},
    ]
    for place, record in zip(LEFT_OUT, wrong, strict=True):
        records.insert(place, record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, images


def check(folder, data):
    """Trained sources and ledger together are every index of both epochs, once.

    Packs aren't as many in every epoch; the run still ends with the last one.
    """
    trained = [json.loads(line) for line in (folder / "trained.0").read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    sums = [{"epoch": epoch, "trained": 45, "dropped": 3, "total": 48} for epoch in range(2)]
    assert [line for line in lines if "total" in line] == sums
    for epoch in range(2):
        batches = (batch for entry in trained if entry["epoch"] == epoch for batch in entry["sources"])
        reasons = {line["index"]: line["reason"] for line in lines if line["epoch"] == epoch and "index" in line}
        found = Counter(source for batch in batches for source in batch if source[0] != "(")
        found.update(f"{data[0]}:{index + 1}" for index in reasons)
        assert found == Counter(f"{data[0]}:{line}" for line in range(1, 49)) and reasons == LEFT_OUT


def note_sources(path, loop, batches):
    """Appends a line for a step: its epoch, and sources by micro-batch."""
    entry = {"epoch": loop.dataloader_iterator.epoch, "sources": [batch["sources"] for batch in batches]}
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.mark.parametrize("leaf", ["full", pytest.param("packed", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_elsewhere_in_an_epoch(train, data, tmp_path, leaf):
    """Resumed from an earlier checkpoint than its last: nothing is counted twice or forgotten."""
    note = fault(STEP, None, partial(note_sources, noted := tmp_path / "trained.0"))
    case = dict(leaf=f"toy_finetune_{leaf}", max_length=300, max_epochs=2, save_steps=3, save_total_limit=-1, data=data)
    case |= dict(batch_size=3, accumulative_counts=2, options=SKIP)
    if leaf == "packed":
        workers = {"train_dataloader.persistent_workers": True, **SKIP}
        case |= dict(batch_size=1, accumulative_counts=1, pack_tokens=400, num_workers=2, options=workers)
    train("run", prepare=note, **case)
    check(tmp_path, data)
    steps = noted.read_text().splitlines(keepends=True)
    num_first = sum(json.loads(step)["epoch"] == 0 for step in steps)
    assert num_first > 6
    for place in (3, num_first + (-num_first) % 3):  # within the first epoch, and within the second
        noted.write_text("".join(steps[:place]))
        resume = ("--resume", str(tmp_path / "run" / f"iter_{place}.pth"))
        train("run", extra=resume, prepare=note, **case)
        check(tmp_path, data)


def test_a_loop_without_a_plan_is_refused(tmp_path):
    runner = SimpleNamespace(train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop), work_dir=tmp_path)
    for hook in (LedgerHook(), StateHook()):
        with pytest.raises(ValueError, match="train_cfg: IterBasedTrainLoop keeps no plan.*PlannedTrainLoop"):
            hook.before_train(runner)
