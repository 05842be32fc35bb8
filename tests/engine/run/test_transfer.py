"""A run resumes under another strategy and another number of ranks as if nothing had changed."""

import pytest
import torch

from xtuner_plugins.engine.run.transfer import read_state

from ..forked import LAYOUTS, contents, write_dataset

pytestmark = pytest.mark.slow

STEPS, SAVED = 4, 2
# Sums of float32 in another order: a few units in the last place, grown over the two steps that differ. AdamW divides
# by the root of the second moment, so that weights move by lr times such an error.
TOLERANCE = 1e-5
PLACES = {**LAYOUTS, "zero2 alone": (1, "deepspeed_zero2")}
PLACES |= {f"zero{n} on 4": (4, f"deepspeed_zero{n}") for n in (2, 3)}
# Each kind of file is read by each kind of run, and on fewer and on more ranks than have written it.
WAYS = [
    *(("plain", "zero1"), ("ddp", "zero3"), ("zero1", "plain"), ("zero2", "zero1"), ("zero2", "zero2 alone")),
    *(("zero2", "zero3"), ("zero3", "ddp"), ("zero3", "zero2"), ("zero3", "zero3 on 4"), ("zero2 on 4", "zero2")),
]


def recipe(leaf, place, **more):
    """Learning rates by part, so that there are several groups; a warm-up, so that the schedule matters."""
    processes, deepspeed = PLACES[place]
    own = dict(save_steps=SAVED, warmup_ratio=0.3, projector_lr=5e-4)
    return {"leaf": f"toy_finetune_{leaf}", **own, "processes": processes, "deepspeed": deepspeed, **more}


def require_goes_on(run, whole):
    """Weights, moments and counters are those of the uninterrupted run; options, position and schedule exactly."""
    assert run.logged() == pytest.approx(whole.logged()[SAVED:], abs=TOLERANCE)
    left, right = contents(run.saved(STEPS)), contents(whole.saved(STEPS))
    assert left.keys() == right.keys() and len({key.split()[0] for key in left}) == 4
    for key in left:
        torch.testing.assert_close(left[key].float(), right[key].float(), atol=TOLERANCE, rtol=1e-3, msg=key)
    state, wanted = read_state(run.saved(STEPS)), read_state(whole.saved(STEPS))
    for name, options in wanted.options.items():
        for key in ("lr", "initial_lr", "weight_decay", "betas"):
            assert state.options[name][key] == pytest.approx(options[key], rel=1e-9), (name, key)
    assert state.extra["plan"] | {"cell": 0} == wanted.extra["plan"] | {"cell": 0}
    for key in ("last_step", "_global_step", "end", "base_values"):
        assert state.extra["param_schedulers"][0][key] == wanted.extra["param_schedulers"][0][key], key


@pytest.mark.parametrize("leaf, source, target", [(("full", "lora")[n % 2], *way) for n, way in enumerate(WAYS)])
def test_every_way(once, train, leaf, source, target):
    whole, saved = (once(f"{leaf} {each}", **recipe(leaf, each)) for each in ("plain", source))
    require_goes_on(train("run", extra=("--resume", str(saved.saved(SAVED))), **recipe(leaf, target)), whole)


def test_from_ranks_that_share_rows(train, tmp_path):
    """They go on as one process and as other groups; rows to validate on aren't shared; images are measured."""
    data, images = write_dataset(tmp_path / "validation", num_samples=6)
    case = dict(val_interval=SAVED, val_batch_size=2, val_data_paths=[str(data)], val_image_folders=[str(images)])
    first = dict(sequence_parallel=2, batch_size=2, **recipe("lora", "zero2 on 4", **case))
    first, whole = train("first", **first), train("whole", **recipe("lora", "plain", **case))
    assert first.logged("val_loss") == pytest.approx(whole.logged("val_loss"), abs=1e-4)
    assert len(first.logged("images/gain")) == len(whole.logged("images/gain")) > 0  # each rank has its own samples
    for name, own in (("one", {}), ("four", {"processes": 4, "sequence_parallel": 4, "batch_size": 4})):
        resume = ("--resume", str(first.saved(SAVED)))
        require_goes_on(train(name, extra=resume, **{**recipe("lora", "plain", **case), **own}), whole)


@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_weights_alone(once, train, layout):
    """The same float32 weights under every strategy, taken by load_from under any other."""
    options = {"default_hooks.checkpoint.save_optimizer": False}
    run, whole = train("run", options=options, **recipe("lora", layout)), once("lora plain", **recipe("lora", "plain"))
    saved = run.saved(STEPS)
    assert saved.is_file()
    states = [read_state(each.saved(STEPS), with_optimizer=False).weights for each in (run, whole)]
    weights, expected = ({name: tensor.read() for name, tensor in state.items()} for state in states)
    torch.testing.assert_close(weights, expected, atol=TOLERANCE, rtol=1e-3)
    other = recipe("lora", "plain" if layout != "ddp" else "zero3")
    assert train("new", options={"load_from": str(saved)}, **other).logged()[0] < whole.logged()[0]
