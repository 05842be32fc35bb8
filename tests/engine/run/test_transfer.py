"""A run resumes under another strategy and another number of ranks as if nothing had changed."""

import pytest
import torch

from xtuner_plugins.engine.run.transfer import read_state

from ..parallel_case import contents, require_equal

pytestmark = pytest.mark.slow

STEPS, SAVED = 4, 2
# Sums of float32 in another order: a few units in the last place, grown over the two steps that differ. AdamW divides
# by the root of the second moment, so that weights move by lr times such an error.
TOLERANCE = 1e-5
LAYOUTS = {"plain": (1, None), "ddp": (2, None), **{f"zero{n}": (2, f"deepspeed_zero{n}") for n in (1, 2, 3)}}
LAYOUTS |= {"zero2 alone": (1, "deepspeed_zero2"), **{f"zero{n} on 4": (4, f"deepspeed_zero{n}") for n in (2, 3)}}
# Each kind of file is read by each kind of run, and on fewer and on more ranks than have written it.
WAYS = [
    *(("plain", "zero1"), ("ddp", "zero3"), ("zero1", "plain"), ("zero2", "zero1"), ("zero2", "zero2 alone")),
    *(("zero2", "zero3"), ("zero3", "ddp"), ("zero3", "zero2"), ("zero3", "zero3 on 4"), ("zero2 on 4", "zero2")),
]


def recipe(leaf, layout, **more):
    """Learning rates by part, so that there are several groups; a warm-up, so that the schedule matters."""
    processes, deepspeed = LAYOUTS[layout]
    own = dict(save_steps=SAVED, warmup_ratio=0.3, projector_lr=5e-4)
    return {"leaf": f"toy_finetune_{leaf}", **own, "processes": processes, "deepspeed": deepspeed, **more}


def require_same(path, expected):
    """Weights, moments and counters are those of the uninterrupted run; options, position and schedule exactly."""
    left, right = contents(path), contents(expected)
    assert left.keys() == right.keys() and len({key.split()[0] for key in left}) == 4
    for key in left:
        torch.testing.assert_close(left[key].float(), right[key].float(), atol=TOLERANCE, rtol=1e-3, msg=key)
    state, wanted = read_state(path), read_state(expected)
    for name, options in wanted.options.items():
        for key in ("lr", "initial_lr", "weight_decay", "betas"):
            assert state.options[name][key] == pytest.approx(options[key], rel=1e-9), (name, key)
    assert state.extra["plan"] | {"cell": 0} == wanted.extra["plan"] | {"cell": 0}
    for key in ("last_step", "_global_step", "end", "base_values"):
        assert state.extra["param_schedulers"][0][key] == wanted.extra["param_schedulers"][0][key], key


@pytest.mark.parametrize(
    "leaf, source, target", [(("full", "lora")[index % 2], *way) for index, way in enumerate(WAYS)]
)
def test_every_way(once, train, leaf, source, target):
    whole, saved = (once(f"{leaf} {each}", **recipe(leaf, each)) for each in ("plain", source))
    run = train("run", extra=("--resume", str(saved.work_dir / f"iter_{SAVED}.pth")), **recipe(leaf, target))
    assert run.logged() == pytest.approx(whole.logged()[SAVED:], abs=TOLERANCE)
    require_same(*(each.work_dir / f"iter_{STEPS}.pth" for each in (run, whole)))


@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_weights_alone(once, train, layout):
    """The same float32 weights under every strategy; refused by --resume, taken by load_from under any other."""
    options = {"default_hooks.checkpoint.save_optimizer": False}
    run, whole = train("run", options=options, **recipe("lora", layout)), once("lora plain", **recipe("lora", "plain"))
    saved = run.work_dir / f"iter_{STEPS}.pth"
    assert "weights only (save_optimizer=False): not resumable" in run.output and saved.is_file()
    states = [read_state(each.work_dir / saved.name, with_optimizer=False).weights for each in (run, whole)]
    weights, expected = ({name: tensor.read() for name, tensor in state.items()} for state in states)
    torch.testing.assert_close(weights, expected, atol=TOLERANCE, rtol=1e-3)
    refused = train("no", codes=(2,), extra=("--resume", str(saved)), **recipe("lora", "plain"))
    assert f"--cfg-options load_from={saved}" in refused.errors[0]
    other = recipe("lora", "plain" if layout != "ddp" else "zero3")
    assert train("new", options={"load_from": str(saved)}, **other).logged()[0] < whole.logged()[0]


def test_bfloat16_masters_go_on(train):
    """ZeRO-1 in bfloat16 has files of its own; its float32 weights and moments go to one process unrounded."""
    run = train("run", **recipe("full", "zero1", dtype="bfloat16"))
    assert "weights in bfloat16, gradients summed in float32" in run.output
    resume = ("--resume", str(run.work_dir / f"iter_{SAVED}.pth"))
    again = train("again", extra=resume, **recipe("full", "zero1", dtype="bfloat16"))
    assert again.logged() == run.logged()[SAVED:]
    left, right = (contents(each.work_dir / f"iter_{STEPS}.pth") for each in (again, run))
    require_equal(left, right)
    assert any((left[key] != left[key].bfloat16()).any() for key in left if key.startswith("weight"))
    plain = train("plain", extra=resume, **recipe("full", "plain", dtype="bfloat16"))
    assert plain.logged() == pytest.approx(run.logged()[SAVED:], rel=0.02)
