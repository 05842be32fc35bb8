"""In real runs every index of an epoch is either trained on or in the ledger, exactly once."""

import json
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.runner import IterBasedTrainLoop, Runner

from xtuner_plugins.datasets import MultimodalDataset, ledger
from xtuner_plugins.datasets.ledger import TooManyBadSamples
from xtuner_plugins.engine import LedgerHook, PlannedTrainLoop, StateHook
from xtuner_plugins.engine.run.loops import PlanIterator

from ..forked import note_sources, train_forked
from ..parallel_case import write_dataset


class TestOverALoader:
    """The hook by itself, over the loader of a run that has no model."""

    @pytest.fixture
    def dataset(self, data, toy_base, tmp_path):
        path, images = data
        return MultimodalDataset(str(toy_base), path, images, max_length=300, on_bad_sample="skip")

    @staticmethod
    def runner(dataset, work_dir, micro_batches=1, sampler="PlanSampler", **settings):
        settings = {"batch_size": 3, "num_workers": 0, "collate_fn": dict(type="collate"), **settings}
        loader = Runner.build_dataloader(dict(dataset=dataset, sampler=dict(type=sampler), **settings), seed=1)
        loop = PlannedTrainLoop.__new__(PlannedTrainLoop)
        loop.dataloader_iterator = PlanIterator(loader, micro_batches)
        return SimpleNamespace(train_loop=loop, train_dataloader=loader, work_dir=work_dir)

    PACKS = dict(
        batch_sampler=dict(type="PackBatchSampler", max_tokens=600),
        collate_fn=dict(type="collate_packed"),
        batch_size=1,
    )

    @pytest.mark.parametrize("settings", [{}, PACKS])
    def test_every_index_is_accounted_for(self, data, dataset, tmp_path, settings):
        runner, hook = self.runner(dataset, tmp_path, micro_batches=2, **settings), LedgerHook()
        hook.before_train(runner)
        iterator = runner.train_loop.dataloader_iterator
        for _ in range(iterator.steps_of_epoch(0)):
            step = next(iterator)
            hook.before_train_iter(runner, 0, step)
            assert not any("dropped" in batch for batch in step)
            hook.after_train_iter(runner, 0, step)
        hook.after_train(runner)
        lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
        assert lines[-1] == {"epoch": 0, "trained": 42, "dropped": 6, "total": 48}
        assert sorted(line["index"] for line in lines[:-1]) == [1, 9, 17, 25, 33, 41]
        assert all(line["reason"] and line["dataset"] == data[0].stem for line in lines[:-1])

    def test_too_many_unusable_samples_stop_the_run(self, dataset, tmp_path, monkeypatch):
        for most in (5, 4):  # five records are broken, one is too long
            monkeypatch.setattr(ledger, "MAX_BAD_SAMPLES", most)
            hook, runner = LedgerHook(), self.runner(dataset, tmp_path / str(most), batch_size=48)
            (tmp_path / str(most)).mkdir()
            hook.before_train(runner)
            step = next(runner.train_loop.dataloader_iterator)
            hook.before_train_iter(runner, 0, step)
            with pytest.raises(TooManyBadSamples, match="beyond 4 per epoch") if most == 4 else nullcontext():
                hook.after_train_iter(runner, 0, step)

    def test_a_loop_without_plan_is_refused(self, tmp_path):
        runner = SimpleNamespace(train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop), work_dir=tmp_path)
        for hook in (LedgerHook(), StateHook()):
            with pytest.raises(ValueError, match="train_cfg: IterBasedTrainLoop keeps no plan.*PlannedTrainLoop"):
                hook.before_train(runner)


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
    for place, record in zip((1, 9, 17, 25, 33, 41), wrong, strict=True):
        records.insert(place, record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, images


def check(folder: Path, data: tuple[Path, Path], num_epochs: int = 3) -> list[dict]:
    """Trained sources and ledger together are every index of each epoch, once; returns the lines of sums.

    Packs aren't as many in every epoch; the run still ends with the last one.
    """
    expected = Counter(f"{data[0]}:{line}" for line in range(1, 49))
    trained = [json.loads(line) for path in sorted(folder.glob("trained.*")) for line in path.read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    sums = [line for line in lines if "total" in line]
    assert [line["epoch"] for line in sums] == list(range(num_epochs))
    for epoch, line in enumerate(sums):
        batches = (batch for entry in trained if entry["epoch"] == epoch for batch in entry["sources"])
        found = Counter(source for batch in batches for source in batch if source[0] != "(")
        left_out = [entry for entry in lines if entry["epoch"] == epoch and "index" in entry]
        assert line == {"epoch": epoch, "trained": sum(found.values()), "dropped": len(left_out), "total": 48}
        found.update(f"{data[0]}:{entry['index'] + 1}" for entry in left_out)
        assert found == expected
        reasons = {entry["index"]: entry["reason"] for entry in left_out}
        assert set(reasons) == {1, 9, 17, 25, 33, 41} and reasons[41] == "too_long"
        assert reasons[9] == reasons[33] == "image_unreadable"
        assert (line["trained"], line["dropped"]) == (42, 6)
    return sums


def settings(folder: Path, **more) -> dict:
    return {
        "train_cfg.max_epochs": 3,
        "train_dataloader.num_workers": 2,
        "train_dataloader.persistent_workers": True,
        "train_dataloader.dataset.on_bad_sample": "skip",
        "train_dataloader.dataset.max_length": 300,
        **more,
    }


EVERY_THIRD = {"default_hooks.checkpoint.interval": 3, "default_hooks.checkpoint.max_keep_ckpts": -1}
PACKED = {"train_dataloader.batch_size": 1, "train_dataloader.batch_sampler.max_tokens": 400}


@pytest.fixture
def train(toy_base, data, tmp_path):
    """train(name, **case) -> a run of a toy leaf, which writes down what it trains on."""

    def train(name, options, **case):
        case = dict(config=f"configs/toy/toy_finetune_{name}.py", **case)
        prepare = partial(note_sources, tmp_path / "trained")
        return train_forked(tmp_path / "run", toy_base, data, options=options, prepare=prepare, **case)

    return train


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_in_an_epoch(train, data, tmp_path):
    """Resumed from an earlier checkpoint than its last: nothing is counted twice or forgotten."""
    options = settings(tmp_path, **PACKED, **EVERY_THIRD)
    whole = train("packed", options)
    assert whole.ok, whole.output[-3000:]
    before = check(tmp_path, data)
    steps = [json.loads(line) for line in (tmp_path / "trained.0").read_text().splitlines()]
    num_first = sum(entry["epoch"] == 0 for entry in steps)
    assert num_first > 6
    for place in (3, num_first + (-num_first) % 3):  # within the first epoch, and within the second
        (tmp_path / "trained.0").write_text("".join(json.dumps(entry) + "\n" for entry in steps[:place]))
        run = train("packed", options, extra=("--resume", str(tmp_path / "run" / f"iter_{place}.pth")))
        assert run.ok, run.output[-3000:]
        assert check(tmp_path, data) == before
    again = train("packed", options | {"train_cfg.max_epochs": 1})
    assert again.ok and (tmp_path / "run" / "ledger.previous.jsonl").exists()
    assert (tmp_path / "run" / "ledger.jsonl").read_text().count('"total"') <= 2
