"""Runs whose ranks share rows take the same steps as one process, under every strategy, and go on from each other."""

import json
import signal

import pytest

from ..forked import fault, send
from ..parallel_case import write_dataset
from .test_going_on import poison
from .test_transfer import TOLERANCE, require_same

pytestmark = pytest.mark.slow

# Sums of float32 in another order; what they change grows over four optimizer steps.
FIRST_STEP = 1e-6
CASES = {
    "full": {},
    "packed": {"leaf": "toy_finetune_packed", "pack_tokens": 200},
    "lora": {"leaf": "toy_finetune_lora", "gradient_checkpointing": True, "offload_activations": True},
}


def shared(case, processes, ranks, deepspeed=None):
    """A case on so many processes, of which so many share each row; 4 samples or 1 pack per micro-batch in all."""
    samples = 1 if "pack_tokens" in case else 4 * ranks // processes
    return {**case, "processes": processes, "deepspeed": deepspeed, "sequence_parallel": ranks, "batch_size": samples}


@pytest.mark.parametrize(
    "name, processes, ranks, deepspeed",
    [
        ("full", 2, 2, None),
        ("full", 4, 2, "deepspeed_zero2"),
        ("packed", 2, 2, "deepspeed_zero3"),
        ("packed", 4, 4, None),
        ("lora", 2, 2, "deepspeed_zero3"),
    ],
)
def test_same_steps_as_one_process(once, train, name, processes, ranks, deepspeed):
    """The same losses, norms, counts of tokens and tiles; the ledger and the speed count each sample once."""
    alone = once(name, **shared(CASES[name], 1, 1))
    run = train("run", **shared(CASES[name], processes, ranks, deepspeed))
    for key in ("loss", "grad_norm", "lr", "supervised_tokens", "tiles", "padding"):
        found, expected = run.logged(key), alone.logged(key)
        assert found[0] == pytest.approx(expected[0], rel=FIRST_STEP), key
        assert found == pytest.approx(expected, rel=TOLERANCE), key
    ledgers = [(each.work_dir / "ledger.jsonl").read_text() for each in (run, alone)]
    assert ledgers[0] == ledgers[1] and json.loads(ledgers[0].splitlines()[-1])["trained"] == 16
    assert f"{ranks} ranks share each row" in run.output and f"each of {processes // ranks} ranks" in run.output


@pytest.fixture(scope="module")
def saving(tmp_path_factory):
    """The LoRA recipe, which saves after two of four steps, validates there and at the end, and measures images."""
    data, images = write_dataset(tmp_path_factory.mktemp("validation"), num_samples=6)
    own = dict(leaf="toy_finetune_lora", save_steps=2, val_interval=2, val_batch_size=2)
    return {**own, "val_data_paths": [str(data)], "val_image_folders": [str(images)]}


def test_goes_on_on_other_ranks(train, saving):
    """Shared rows go on as whole ones and as those of other groups; rows to validate on aren't shared."""
    first, whole = train("first", **shared(saving, 4, 2, "deepspeed_zero2")), train("whole", **shared(saving, 1, 1))
    assert first.logged("val_loss") == pytest.approx(whole.logged("val_loss"), abs=1e-4)
    assert len(first.logged("images/gain")) == len(whole.logged("images/gain")) > 0  # each rank has its own samples
    for name, processes, ranks in (("one", 1, 1), ("four", 4, 4)):
        resume = ("--resume", str(first.work_dir / "iter_2.pth"))
        run = train(name, extra=resume, **shared(saving, processes, ranks))
        assert run.logged() == pytest.approx(whole.logged()[2:], abs=TOLERANCE)
        require_same(*(each.work_dir / "iter_4.pth" for each in (run, whole)))


def tell(*_):
    send(signal.SIGTERM)


def test_a_fault_on_one_rank_stops_all(train, saving):
    """A loss that isn't finite names its samples once; after a signal all save the same step."""
    case = shared(saving, 2, 2)
    run = train("nan", codes=(1,), prepare=fault("engine.run.steps.naming", 1, poison, 1), **case)
    (line,) = run.errors
    assert "step 1: the loss is nan" in line and line.count("train.jsonl:") == 4
    told = fault("engine.run.loops.PlannedTrainLoop.run_iter", 3, tell, 1)
    assert "stopped by SIGTERM after step 2" in train("told", codes=(143,), prepare=told, **case).output


def test_processes_that_make_no_whole_groups_are_refused(train):
    run = train("run", codes=(2,), **shared({}, 1, 2))
    assert "sequence_parallel=2: the run has 1 process(es)" in run.errors[0]
