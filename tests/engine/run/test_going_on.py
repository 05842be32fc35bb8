"""Runs that are killed, or told to stop, under the recipes' own kind of settings: accumulation and dropout on."""

import os
import signal
from functools import partial

import pytest
import torch

from xtuner_plugins.engine.run.runtime import allow_checkpoint_types
from xtuner_plugins.weights.checkpoint import open_checkpoint

from ..forked import train_forked
from ..parallel_case import edited_config, logged, write_dataset

NUM_STEPS = 8  # 16 samples in steps of 4, twice
SAVED, KILLED = 3, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(tmp_path):
    """The LoRA recipe with 4 micro-batches per step, dropout, and a checkpoint every third step."""
    return edited_config(
        tmp_path,
        "toy_finetune_lora",
        accumulative_counts=4,
        lora_dropout=0.1,
        warmup_ratio=0.3,
        max_epochs=2,
        save_steps=SAVED,
    )


def options(processes=1):
    return {
        "train_dataloader.batch_size": 1,
        "optim_wrapper.accumulative_counts": 4 // processes,
        "train_cfg.max_epochs": 2,
        "param_scheduler.warmup_ratio": 0.3,
    }


def kill_before(step):
    """The process ends without a word before it trains a step (from 0)."""
    from xtuner_plugins.engine.run.loops import PlannedTrainLoop

    run_iter = PlannedTrainLoop.run_iter

    def killed(loop, batch):
        if loop.iter == step:
            os.kill(os.getpid(), signal.SIGKILL)
        run_iter(loop, batch)

    PlannedTrainLoop.run_iter = killed


def poison(step, micro_batch, value=float("nan")):
    """The loss of one micro-batch of a step is ruined on rank 0."""
    from xtuner_plugins.engine.run import steps

    calls = []
    next_loss = steps.batch_weight

    def count(batch):
        calls.append(batch)
        if len(calls) == 4 * step + micro_batch + 1 and os.environ.get("RANK", "0") == "0":
            batch["loss_weights"] = torch.full((len(batch["num_tiles"]),), value)
            return 1.0
        return next_loss(batch)

    steps.batch_weight = count


def overflow():
    """Finite losses whose gradients overflow in the backward pass."""
    from xtuner_plugins.models import vlm

    next_token_loss = vlm.next_token_loss

    def overflowing(hidden, *args):
        hidden.register_hook(lambda gradient: gradient * float("inf"))
        return next_token_loss(hidden, *args)

    vlm.next_token_loss = overflowing


def ruin_weights():
    """Every update leaves one trained weight infinite."""
    from mmengine.optim import OptimWrapper

    step = OptimWrapper.step

    def ruinous(wrapper):
        step(wrapper)
        trained = [p for group in wrapper.param_groups for p in group["params"] if p.requires_grad]
        trained[-1].data.view(-1)[0] = float("inf")

    OptimWrapper.step = ruinous


def contents(path):
    """Every tensor of a checkpoint; of a plain file the optimizer's too."""
    if path.is_file():
        allow_checkpoint_types()
        saved = torch.load(path, weights_only=True)
        state = {f"{i}.{k}": v for i, entry in saved["optimizer"]["state"].items() for k, v in entry.items()}
        return {**saved["state_dict"], **state}
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def require_equal(left, right):
    assert left.keys() == right.keys() and left
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def overflow_at_first(then=None):
    """Scales start so high that the first step overflows, and grow soon."""
    torch.amp.GradScaler = partial(torch.amp.GradScaler, init_scale=2.0**40, growth_interval=2)
    if then:
        then()


@pytest.mark.parametrize(
    "processes, deepspeed, dtype",
    [
        (1, None, "float32"),
        (1, None, "float16"),
        *(
            pytest.param(2, each, "float32", marks=pytest.mark.slow)
            for each in (None, "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
        ),
    ],
)
def test_a_killed_run_goes_on_bit_equal(toy_base, data, recipe, tmp_path, processes, deepspeed, dtype):
    """In float16 the scale of the loss, too, which an overflow has changed."""
    prepare, kill = overflow_at_first, partial(kill_before, KILLED)
    case = dict(processes=processes, deepspeed=deepspeed, config=recipe)
    case["options"] = {**options(processes), "model.dtype": dtype}
    whole = train_forked(tmp_path / "whole", toy_base, data, prepare=prepare, **case)
    assert whole.ok, whole.output[-3000:]
    killed = train_forked(tmp_path / "killed", toy_base, data, prepare=partial(prepare, kill), **case)
    assert killed.codes == [-signal.SIGKILL] * processes
    again = train_forked(tmp_path / "killed", toy_base, data, extra=("--resume", "auto"), prepare=prepare, **case)
    assert again.ok, again.output[-3000:]
    assert f"resuming from {tmp_path / 'killed' / f'iter_{SAVED}.pth'}" in again.output
    assert len(logged(tmp_path / "whole")) == NUM_STEPS
    assert len(set(logged(tmp_path / "whole", "loss_scale"))) == (4 if dtype == "float16" else 0)
    for key in ("loss", "loss_scale", "overflows"):
        assert logged(tmp_path / "killed", key) == logged(tmp_path / "whole", key)[SAVED:]
    final = f"iter_{NUM_STEPS}.pth"
    require_equal(contents(tmp_path / "killed" / final), contents(tmp_path / "whole" / final))


def exhaust(call):
    """The model's n-th forward pass of a step (from 0) on rank 0 asks for more memory than there is."""
    from xtuner_plugins.models import VisionLanguageModel

    forward, calls = VisionLanguageModel.forward, []

    def exhausting(model, *args, **kwargs):
        if kwargs.get("mean_weight") is not None:
            calls.append(1)
        if len(calls) == call + 1 and os.environ.get("RANK", "0") == "0":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(model, *args, **kwargs)

    VisionLanguageModel.forward = exhausting


def test_memory_that_runs_out_in_a_step(toy_base, data, recipe, tmp_path):
    case = dict(config=recipe, options=options(), prepare=partial(exhaust, 4 * 3 + 2))
    run = train_forked(tmp_path / "run", toy_base, data, **case)
    assert run.codes == [1]
    [line] = run.errors
    assert "step 4: out of memory on rank 0 with 1 samples of " in line and line.count(f"{data[0]}:") == 1
    assert f"The last good checkpoint is {tmp_path / 'run' / 'iter_3.pth'}" in line


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2"])
def test_no_rank_waits_for_one_without_memory(toy_base, data, recipe, tmp_path, deepspeed):
    case = dict(config=recipe, options=options(2), processes=2, deepspeed=deepspeed)
    run = train_forked(tmp_path / "run", toy_base, data, prepare=partial(exhaust, 0), **case)
    assert run.codes[0] == 1 and len(run.errors) == 1 and run.codes[1] != 0


class TestNotFinite:
    def test_a_loss_that_is_nan_stops_the_run_before_anything_is_lost(self, toy_base, data, recipe, tmp_path):
        case = dict(config=recipe, options=options())
        run = train_forked(tmp_path / "run", toy_base, data, prepare=partial(poison, 4, 2), **case)
        assert run.codes == [1]
        [line] = run.errors
        assert "step 5: the loss is nan, from the samples " in line
        assert line.count(f"{data[0]}:") == 1  # the one micro-batch at fault
        assert f"The last good checkpoint is {tmp_path / 'run' / 'iter_3.pth'}" in line
        assert {path.name for path in (tmp_path / "run").glob("iter_*")} == {"iter_3.pth"}

    @pytest.mark.slow
    @pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2"])
    def test_every_rank_ends_and_one_speaks(self, toy_base, data, recipe, tmp_path, deepspeed):
        case = dict(config=recipe, options=options(1), processes=2, deepspeed=deepspeed)
        run = train_forked(tmp_path / "run", toy_base, data, prepare=partial(poison, 1, 0), **case)
        assert run.codes == [1, 1]
        assert "step 2: the loss is nan" in run.errors[0] and "nothing was saved yet" in run.errors[0]
        assert "error" not in (tmp_path / "run.rank1.log").read_text()

    @pytest.mark.parametrize(
        "deepspeed",
        [
            None,
            pytest.param("deepspeed_zero2", marks=pytest.mark.slow),
            pytest.param("deepspeed_zero3", marks=pytest.mark.slow),
        ],
    )
    def test_an_infinite_gradient_stops_the_run(self, toy_base, data, recipe, tmp_path, deepspeed):
        run = train_forked(
            tmp_path / "run", toy_base, data, prepare=overflow, config=recipe, options=options(), deepspeed=deepspeed
        )
        assert run.codes == [1], run.output[-2000:]
        assert "step 1: the gradient norm is " in run.errors[0] and str(data[0]) in run.errors[0]

    def test_weights_that_an_update_ruined_are_not_saved(self, toy_base, data, recipe, tmp_path):
        case = dict(config=recipe, options={**options(), "default_hooks.checkpoint.interval": 1})
        run = train_forked(tmp_path / "run", toy_base, data, prepare=ruin_weights, **case)
        assert run.codes == [1] and not list((tmp_path / "run").glob("iter_*"))
        assert "iter_1.pth was not written: the last update made weights infinite" in run.errors[0]
