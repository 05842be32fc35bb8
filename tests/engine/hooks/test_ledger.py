"""In real runs every index of an epoch is either trained on or in the ledger, exactly once."""

import json
from collections import Counter
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
from mmengine.runner import IterBasedTrainLoop, Runner

from xtuner_plugins.datasets import MultimodalDataset, ledger
from xtuner_plugins.datasets.ledger import TooManyBadSamples
from xtuner_plugins.engine import LedgerHook, PlannedTrainLoop, StateHook
from xtuner_plugins.engine.run.loops import PlanIterator

from ..forked import fault, note_sources
from ..parallel_case import write_dataset

LEFT_OUT = {1, 9, 17, 25, 33, 41}


@pytest.fixture
def data(tmp_path):
    """48 records of which six can't be used.

    Three are known from headers and texts, before the first step; two only when they are opened; one is too long.
    """
    path, images = write_dataset(tmp_path / "data", num_samples=42)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    turns = records[0]["conversations"]
    cut = (images / "0.png").read_bytes()
    for name in ("cut1.png", "cut2.png"):  # the header is whole
        (images / name).write_bytes(cut[: len(cut) // 2])
    wrong = [
        {"image": "none.png", "conversations": turns},
        {"image": "cut1.png", "conversations": turns},
        {"conversations": turns},
        {"text": "no conversation"},
        {"image": "cut2.png", "conversations": turns},
        {"conversations": [{"from": "human", "value": "word " * 3000}, {"from": "gpt", "value": "Long."}]},
    ]
    for place, record in zip(sorted(LEFT_OUT), wrong, strict=True):
        records.insert(place, record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, images


@pytest.fixture
def runner(data, toy_base, tmp_path):
    """runner(**settings) -> a run of the hook alone, over a loader, without a model."""
    dataset = MultimodalDataset(str(toy_base), *data, max_length=300, on_bad_sample="skip")

    def make(folder, micro_batches=1, **settings):
        settings = {"batch_size": 3, "num_workers": 0, "collate_fn": dict(type="collate"), **settings}
        loader = Runner.build_dataloader(dict(dataset=dataset, sampler=dict(type="PlanSampler"), **settings), seed=1)
        loop = PlannedTrainLoop.__new__(PlannedTrainLoop)
        loop.dataloader_iterator = PlanIterator(loader, micro_batches)
        (tmp_path / folder).mkdir()
        return SimpleNamespace(train_loop=loop, train_dataloader=loader, work_dir=tmp_path / folder)

    return make


PACKS = dict(
    batch_sampler=dict(type="PackBatchSampler", max_tokens=600), collate_fn=dict(type="collate_packed"), batch_size=1
)


def test_every_index_is_accounted_for(data, runner):
    for name, settings in (("padded", {}), ("packed", PACKS)):
        run, hook = runner(name, micro_batches=2, **settings), LedgerHook()
        hook.before_train(run)
        iterator = run.train_loop.dataloader_iterator
        for _ in range(iterator.steps_of_epoch(0)):
            step = next(iterator)
            hook.before_train_iter(run, 0, step)
            assert not any("dropped" in batch for batch in step)
            hook.after_train_iter(run, 0, step)
        hook.after_train(run)
        lines = [json.loads(line) for line in (run.work_dir / "ledger.jsonl").read_text().splitlines()]
        assert lines[-1] == {"epoch": 0, "trained": 42, "dropped": 6, "total": 48}
        assert {line["index"] for line in lines[:-1]} == LEFT_OUT and len(lines) == 7
        assert all(line["reason"] and line["dataset"] == data[0].stem for line in lines[:-1])


def test_too_many_unusable_samples_stop_the_run(runner, monkeypatch):
    for most in (5, 4):  # five records are broken, one is too long
        monkeypatch.setattr(ledger, "MAX_BAD_SAMPLES", most)
        hook, run = LedgerHook(), runner(str(most), batch_size=48)
        hook.before_train(run)
        step = next(run.train_loop.dataloader_iterator)
        hook.before_train_iter(run, 0, step)
        with pytest.raises(TooManyBadSamples, match="beyond 4 per epoch") if most == 4 else nullcontext():
            hook.after_train_iter(run, 0, step)


def test_a_loop_without_plan_is_refused(tmp_path):
    run = SimpleNamespace(train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop), work_dir=tmp_path)
    for hook in (LedgerHook(), StateHook()):
        with pytest.raises(ValueError, match="train_cfg: IterBasedTrainLoop keeps no plan.*PlannedTrainLoop"):
            hook.before_train(run)


def check(folder, data, num_epochs=3):
    """Trained sources and ledger together are every index of each epoch, once; returns the lines of sums.

    Packs aren't as many in every epoch; the run still ends with the last one.
    """
    expected = Counter(f"{data[0]}:{line}" for line in range(1, 49))
    trained = [json.loads(line) for path in sorted(folder.glob("trained.*")) for line in path.read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    sums = [line for line in lines if "total" in line]
    assert sums == [{"epoch": epoch, "trained": 42, "dropped": 6, "total": 48} for epoch in range(num_epochs)]
    for epoch in range(num_epochs):
        batches = (batch for entry in trained if entry["epoch"] == epoch for batch in entry["sources"])
        found = Counter(source for batch in batches for source in batch if source[0] != "(")
        reasons = {line["index"]: line["reason"] for line in lines if line["epoch"] == epoch and "index" in line}
        found.update(f"{data[0]}:{index + 1}" for index in reasons)
        assert found == expected and reasons.keys() == LEFT_OUT and reasons[41] == "too_long"
        assert reasons[9] == reasons[33] == "image_unreadable"
    return sums


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_in_an_epoch(train, data, tmp_path):
    """Resumed from an earlier checkpoint than its last: nothing is counted twice or forgotten."""
    noted = tmp_path / "trained.0"
    note = fault("engine.run.loops.PlannedTrainLoop.run_iter", None, partial(note_sources, tmp_path / "trained"))
    options = {"train_dataloader.persistent_workers": True, "train_dataloader.dataset.on_bad_sample": "skip"}
    case = dict(leaf="toy_finetune_packed", num_workers=2, batch_size=1, pack_tokens=400, max_length=300, save_steps=3)
    case |= dict(options=options, prepare=note, save_total_limit=-1)
    train("run", max_epochs=3, **case)
    before = check(tmp_path, data)
    steps = [json.loads(line) for line in noted.read_text().splitlines()]
    num_first = sum(entry["epoch"] == 0 for entry in steps)
    assert num_first > 6
    for place in (3, num_first + (-num_first) % 3):  # within the first epoch, and within the second
        noted.write_text("".join(json.dumps(entry) + "\n" for entry in steps[:place]))
        train("run", max_epochs=3, extra=("--resume", str(tmp_path / "run" / f"iter_{place}.pth")), **case)
        assert check(tmp_path, data) == before
    again = train("run", max_epochs=1, **case).work_dir
    assert (again / "ledger.previous.jsonl").exists() and (again / "ledger.jsonl").read_text().count('"total"') <= 2
