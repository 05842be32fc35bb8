"""A run resumes under another strategy and another number of ranks as if nothing had changed."""

import pytest
import torch

from xtuner_plugins.engine.run.runtime import allow_checkpoint_types
from xtuner_plugins.engine.run.transfer import read_state

from ..forked import train_forked
from ..parallel_case import edited_config, logged, write_dataset

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
# Each kind of file is read by each kind of run, and on fewer and on more ranks than have written it.
WAYS = [
    ("plain", "zero1"),
    ("ddp", "zero3"),
    ("zero1", "plain"),
    ("zero2", "zero1"),
    ("zero2", "zero2 alone"),
    ("zero2", "zero3"),
    ("zero3", "ddp"),
    ("zero3", "zero2"),
    ("zero3", "zero3 on 4"),
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
@pytest.mark.parametrize("recipe, way", [(("full", "lora")[index % 2], way) for index, way in enumerate(WAYS)])
def test_every_way(toy_base, data, recipes, whole, tmp_path, recipe, way):
    source, target = way
    saved = whole(recipe, source) / f"iter_{SAVED}.pth"
    extra = ("--resume", str(saved))
    run = train_forked(tmp_path / "run", toy_base, data, extra=extra, **case(recipes[recipe]), **of(target))
    assert run.ok, run.output[-3000:] + run.others
    expected = whole(recipe, "plain")
    assert logged(tmp_path / "run") == pytest.approx(logged(expected)[SAVED:], abs=TOLERANCE)
    require_same(tmp_path / "run" / f"iter_{STEPS}.pth", expected / f"iter_{STEPS}.pth")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_weights_alone(toy_base, data, recipes, whole, tmp_path, layout):
    """The same float32 weights under every strategy; refused by --resume, taken by load_from under any other."""
    weights_only = case(recipes["lora"])
    weights_only["options"] = {**weights_only["options"], "default_hooks.checkpoint.save_optimizer": False}
    run = train_forked(tmp_path / "run", toy_base, data, **weights_only, **of(layout))
    assert run.ok and "weights only (save_optimizer=False): not resumable" in run.output, run.output[-3000:]
    saved = tmp_path / "run" / f"iter_{STEPS}.pth"
    assert saved.is_file()
    weights = read_state(saved, with_optimizer=False).weights
    expected = read_state(whole("lora", "plain") / f"iter_{STEPS}.pth").weights
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.read(), expected[name].read(), atol=TOLERANCE, rtol=1e-3)
    refused = train_forked(tmp_path / "no", toy_base, data, extra=("--resume", str(saved)), **case(recipes["lora"]))
    assert refused.codes == [2] and f"--cfg-options load_from={saved}" in refused.errors[0]
    other = case(recipes["lora"])
    other["options"] = {**other["options"], "load_from": str(saved)}
    begun = train_forked(tmp_path / "new", toy_base, data, **other, **of("plain" if layout != "ddp" else "zero3"))
    assert begun.ok and logged(tmp_path / "new")[0] < logged(whole("lora", "plain"))[0], begun.output[-2000:]


@pytest.mark.slow
def test_bfloat16_masters_go_on(toy_base, data, recipes, tmp_path):
    """ZeRO-1 in bfloat16 has files of its own; its float32 weights and moments go to one process unrounded."""
    single = case(recipes["full"])
    single["options"] = {**single["options"], "model.dtype": "bfloat16"}
    half = dict(single, **of("zero1"))
    run = train_forked(tmp_path / "run", toy_base, data, **half)
    assert run.ok and "weights in bfloat16, gradients summed in float32" in run.output, run.output[-3000:]
    saved = tmp_path / "run" / f"iter_{SAVED}.pth"
    again = train_forked(tmp_path / "again", toy_base, data, extra=("--resume", str(saved)), **half)
    assert again.ok, again.output[-3000:]
    assert logged(tmp_path / "again") == logged(tmp_path / "run")[SAVED:]
    left, right = (contents(tmp_path / name / f"iter_{STEPS}.pth")[0] for name in ("again", "run"))
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert any((left[key] != left[key].bfloat16()).any() for key in left if key.startswith("weight"))
    plain = train_forked(tmp_path / "plain", toy_base, data, extra=("--resume", str(saved)), **single)
    assert plain.ok, plain.output[-3000:] + str(plain.errors)
    assert logged(tmp_path / "plain") == pytest.approx(logged(tmp_path / "run")[SAVED:], rel=0.02)
