"""A run resumes under another strategy and another number of ranks as if nothing had changed."""

import pytest
import torch

from xtuner_plugins.engine.runtime import allow_checkpoint_types
from xtuner_plugins.engine.transfer import read_state

from .forked import train_forked
from .parallel_case import edited_config, logged, write_dataset

STEPS, SAVED = 4, 2
# Sums of float32 in another order: a few units in the last place, grown over the two steps that differ. AdamW divides
# by the root of the second moment, so that weights move by lr times such an error.
TOLERANCE = 1e-5
LAYOUTS = {
    "plain": (1, None),
    "ddp": (2, None),
    "zero1": (2, "deepspeed_zero1"),
    "zero2": (2, "deepspeed_zero2"),
    "zero3": (2, "deepspeed_zero3"),
    "zero2 alone": (1, "deepspeed_zero2"),
    "zero3 on 4": (4, "deepspeed_zero3"),
    "zero2 on 4": (4, "deepspeed_zero2"),
}
WAYS = [
    ("plain", "zero1"),
    ("plain", "zero2"),
    ("plain", "zero3"),
    ("ddp", "zero2"),
    ("zero1", "plain"),
    ("zero1", "zero2"),
    ("zero2", "plain"),
    ("zero2", "ddp"),
    ("zero2", "zero1"),
    ("zero2", "zero3"),
    ("zero2", "zero2 alone"),
    ("zero2", "zero2 on 4"),
    ("zero3", "plain"),
    ("zero3", "ddp"),
    ("zero3", "zero2"),
    ("zero3", "zero3 on 4"),
    ("zero3 on 4", "zero3"),
    ("zero2 on 4", "zero2"),
]


def of(layout):
    processes, deepspeed = LAYOUTS[layout]
    return {"processes": processes, "deepspeed": deepspeed}


def contents(path):
    """Weights and moments by name; counters by name."""
    allow_checkpoint_types()
    state = read_state(path)
    tensors = {f"weight {name}": tensor.read() for name, tensor in state.weights.items()}
    for name, entries in state.states.items():
        for key, value in entries.items():
            tensors[f"{key} {name}"] = value.read() if hasattr(value, "read") else torch.as_tensor(value)
    return tensors, state


def require_same(path, expected):
    """Weights, moments and counters are those of the uninterrupted run; options, position and schedule exactly."""
    (left, state), (right, wanted) = contents(path), contents(expected)
    assert left.keys() == right.keys() and len({key.split()[0] for key in left}) == 4
    for key in left:
        torch.testing.assert_close(left[key].float(), right[key].float(), atol=TOLERANCE, rtol=1e-3, msg=key)
    for name, options in wanted.options.items():
        for key in ("lr", "initial_lr", "weight_decay", "betas"):
            assert state.options[name][key] == pytest.approx(options[key], rel=1e-9), (name, key)
    assert state.extra["plan"] | {"cell": 0} == wanted.extra["plan"] | {"cell": 0}
    for key in ("last_step", "_global_step", "end", "base_values"):
        assert state.extra["param_schedulers"][0][key] == wanted.extra["param_schedulers"][0][key], key


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Learning rates by part, so that there are several groups; a warm-up, so that the schedule matters."""
    folder = tmp_path_factory.mktemp("recipes")
    settings = dict(save_steps=SAVED, warmup_ratio=0.3, projector_lr=5e-4)
    full = edited_config(folder / "full", "toy_finetune_full", **settings)
    return {"full": full, "lora": edited_config(folder / "lora", "toy_finetune_lora", **settings)}


@pytest.fixture(scope="module")
def whole(toy_base, data, recipes, tmp_path_factory):
    """whole(recipe, layout) -> the folder of an uninterrupted run, which is made once."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def run(recipe, layout):
        if (recipe, layout) not in made:
            made[recipe, layout] = folder / f"{recipe} {layout}".replace(" ", "_")
            done = train_forked(made[recipe, layout], toy_base, data, **case(recipes[recipe]), **of(layout))
            assert done.ok, done.output[-3000:]
        return made[recipe, layout]

    return run


def case(recipe):
    return {"config": recipe, "options": {"param_scheduler.warmup_ratio": 0.3}}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["full", "lora"])
@pytest.mark.parametrize("source, target", WAYS)
def test_every_way(toy_base, data, recipes, whole, tmp_path, recipe, source, target):
    saved = whole(recipe, source) / f"iter_{SAVED}.pth"
    extra = ("--resume", str(saved))
    run = train_forked(tmp_path / "run", toy_base, data, extra=extra, **case(recipes[recipe]), **of(target))
    assert run.ok, run.output[-3000:] + run.others
    expected = whole(recipe, "plain")
    assert logged(tmp_path / "run") == pytest.approx(logged(expected)[SAVED:], abs=TOLERANCE)
    require_same(tmp_path / "run" / f"iter_{STEPS}.pth", expected / f"iter_{STEPS}.pth")
