"""Runs whose ranks share rows take the same steps as one process, under every strategy, and go on from each other."""

import json
import signal
from functools import partial

import pytest

from ..forked import train_forked
from ..parallel_case import edited_config, logged, write_dataset
from .test_transfer import require_same

pytestmark = pytest.mark.slow

# Sums of float32 in another order; what they change grows over four optimizer steps.
FIRST_STEP, TOLERANCE = 1e-6, 1e-5
PACKED = {"config": "configs/toy/toy_finetune_packed.py", "options": {"train_dataloader.batch_sampler.max_tokens": 200}}
LORA = {
    "config": "configs/toy/toy_finetune_lora.py",
    "options": {"model.gradient_checkpointing": True, "model.offload_activations": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(toy_base, data, tmp_path_factory):
    """alone(case) -> the folder of a run of one process, made once."""
    folder, made = tmp_path_factory.mktemp("alone"), {}

    def run(name, case):
        if name not in made:
            made[name] = folder / name
            done = train_forked(made[name], toy_base, data, **shared(case, 1, 1))
            assert done.ok, done.output[-3000:]
        return made[name]

    return run


def shared(case, processes, ranks, deepspeed=None, **options):
    """A case on so many processes, of which so many share each row; 4 samples or 1 pack per micro-batch in all."""
    samples = 1 if case is PACKED else 4 * ranks // processes
    own = {"model.sequence_parallel": ranks, "train_dataloader.batch_size": samples, **options}
    return {**case, "processes": processes, "deepspeed": deepspeed, "options": {**case.get("options", {}), **own}}


@pytest.mark.parametrize(
    "name, case, processes, ranks, deepspeed",
    [
        ("full", {}, 2, 2, None),
        ("full", {}, 4, 2, "deepspeed_zero2"),
        ("packed", PACKED, 2, 2, "deepspeed_zero3"),
        ("packed", PACKED, 4, 4, None),
        ("lora", LORA, 2, 2, "deepspeed_zero3"),
    ],
)
def test_same_steps_as_one_process(alone, toy_base, data, tmp_path, name, case, processes, ranks, deepspeed):
    """The same losses, norms, counts of tokens and tiles; the ledger and the speed count each sample once."""
    run = train_forked(tmp_path / "run", toy_base, data, **shared(case, processes, ranks, deepspeed))
    assert run.ok, run.output[-3000:] + run.others
    for key in ("loss", "grad_norm", "lr", "supervised_tokens", "tiles", "padding"):
        found, expected = logged(tmp_path / "run", key), logged(alone(name, case), key)
        assert found[0] == pytest.approx(expected[0], rel=FIRST_STEP), key
        assert found == pytest.approx(expected, rel=TOLERANCE), key
    ledgers = [(folder / "ledger.jsonl").read_text() for folder in (tmp_path / "run", alone(name, case))]
    assert ledgers[0] == ledgers[1] and json.loads(ledgers[0].splitlines()[-1])["trained"] == 16
    assert f"{ranks} ranks share each row" in run.output and f"each of {processes // ranks} ranks" in run.output


@pytest.fixture(scope="module")
def saving(tmp_path_factory):
    """The LoRA recipe, which saves after two of four steps, validates there and at the end, and measures images."""
    folder = tmp_path_factory.mktemp("saving")
    data, images = write_dataset(folder / "validation", num_samples=6)
    own = dict(save_steps=2, val_interval=2, val_batch_size=2, val_data_paths=[str(data)])
    return {"config": edited_config(folder, "toy_finetune_lora", **own, val_image_folders=[str(images)])}


def test_goes_on_on_other_ranks(alone, toy_base, data, saving, tmp_path):
    """Shared rows go on as whole ones and as those of other groups; rows to validate on aren't shared."""
    first = tmp_path / "first"
    run = train_forked(first, toy_base, data, **shared(saving, 4, 2, "deepspeed_zero2"))
    assert run.ok, run.output[-3000:] + run.others
    whole = alone("saving", saving)
    assert logged(first, "val_loss") == pytest.approx(logged(whole, "val_loss"), abs=1e-4)
    assert len(logged(first, "images/gain")) == len(logged(whole, "images/gain")) > 0  # each rank has its own samples
    for name, processes, ranks in (("one", 1, 1), ("four", 4, 4)):
        extra = ("--resume", str(first / "iter_2.pth"))
        run = train_forked(tmp_path / name, toy_base, data, extra=extra, **shared(saving, processes, ranks))
        assert run.ok, run.output[-3000:] + run.others
        assert logged(tmp_path / name) == pytest.approx(logged(whole)[2:], abs=TOLERANCE)
        require_same(tmp_path / name / "iter_4.pth", whole / "iter_4.pth")


def only_on(rank, fault):
    """Prepares a run for a fault on one rank alone."""
    import os

    if os.environ["RANK"] == str(rank):
        fault()


def make_nan():
    from xtuner_plugins.models import VisionLanguageModel

    forward = VisionLanguageModel.forward

    def wrong(model, *args, **kwargs):
        outputs = forward(model, *args, **kwargs)
        return {**outputs, "loss": outputs["loss"] * float("nan")}

    VisionLanguageModel.forward = wrong


def signal_itself():
    from xtuner_plugins.engine.run.loops import PlannedTrainLoop

    run_iter = PlannedTrainLoop.run_iter

    def told(loop, batches):
        if loop.iter == 2:
            signal.raise_signal(signal.SIGTERM)
        run_iter(loop, batches)

    PlannedTrainLoop.run_iter = told


def test_a_fault_on_one_rank_stops_all(toy_base, data, saving, tmp_path):
    """A loss that isn't finite names its samples once; after a signal all save the same step."""
    case = shared(saving, 2, 2)
    run = train_forked(tmp_path / "nan", toy_base, data, prepare=partial(only_on, 1, make_nan), **case)
    (line,) = run.errors
    assert run.codes == [1, 1] and "step 1: the loss is nan" in line and line.count("train.jsonl:") == 4
    run = train_forked(tmp_path / "told", toy_base, data, prepare=partial(only_on, 1, signal_itself), **case)
    assert run.codes == [128 + signal.SIGTERM] * 2 and "stopped by SIGTERM after step 2" in run.output


def test_processes_that_make_no_whole_groups_are_refused(toy_base, data, tmp_path):
    run = train_forked(tmp_path / "run", toy_base, data, **shared({}, 1, 2))
    assert run.codes == [2] and "sequence_parallel=2: the run has 1 process(es)" in run.errors[0]
