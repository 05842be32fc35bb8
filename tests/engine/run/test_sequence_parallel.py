"""Runs whose ranks share rows take the same steps as one process, under every strategy, and go on from each other."""

import json

import pytest

from xtuner_plugins.engine.run.transfer import read_state

from ..forked import train_forked
from ..parallel_case import edited_config, logged, train, write_dataset

pytestmark = pytest.mark.slow

# Sums of float32 in another order: a few units in the last place of a loss near 6, grown over four optimizer steps.
TOLERANCE = 1e-5
PACKED = {"config": "configs/toy/toy_finetune_packed.py", "options": {"train_dataloader.batch_sampler.max_tokens": 400}}
LORA = {"config": "configs/toy/toy_finetune_lora.py", "options": {"model.gradient_checkpointing": True}}


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
        assert logged(tmp_path / "run", key) == pytest.approx(logged(alone(name, case), key), rel=TOLERANCE), key
    ledgers = [(folder / "ledger.jsonl").read_text() for folder in (tmp_path / "run", alone(name, case))]
    assert ledgers[0] == ledgers[1] and json.loads(ledgers[0].splitlines()[-1])["trained"] == 16
    assert f"each row of tokens is shared by {ranks} ranks" in run.output
