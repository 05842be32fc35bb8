"""A run whose loss explodes ends with one line and keeps its last good checkpoint; a healthy one doesn't notice."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.engine.hooks.loss_guard import EXPLODED, LossGuardHook, high_since
from xtuner_plugins.engine.loops import TrainingStopped

from ..forked import run_forked, train_forked
from ..parallel_case import edited_config, logged, training, write_dataset

HEALTHY = 15  # steps


class Case:
    """The hook in a run that has only what the hook asks for."""

    def __init__(self, work_dir, **settings):
        llm = nn.Linear(2, 2)
        llm.config = SimpleNamespace(vocab_size=1000)
        self.hook = LossGuardHook(**settings)
        self.runner = SimpleNamespace(
            model=SimpleNamespace(parts=lambda: {"llm": llm}),
            optim_wrapper=SimpleNamespace(optimizer=torch.optim.SGD(llm.parameters(), lr=0.5)),
            message_hub=SimpleNamespace(get_scalar=lambda name: SimpleNamespace(current=lambda: 3.0)),
            hooks=[self.hook],
            work_dir=str(work_dir),
            iter=0,
            max_iters=100,
        )

    def train(self, *losses, supervised=5):
        """Takes steps of these losses, on one sample each: line N of data.jsonl in step N."""
        if self.hook._level is None:
            self.hook.before_train(self.runner)
        for loss in losses:
            batch = {"sources": [f"data.jsonl:{self.runner.iter + 1}"]}
            outputs = {"loss": loss, "supervised_tokens": supervised}
            self.hook.after_train_iter(self.runner, self.runner.iter, [batch], outputs)
            self.runner.iter += 1


def save(work_dir, *steps):
    for step in steps:
        torch.save({"meta": {"iter": step}, "state_dict": {}}, work_dir / f"iter_{step}.pth")


def test_one_line_names_what_a_user_needs(tmp_path):
    save(tmp_path, 10, 14, 15)
    case = Case(tmp_path, steps=3)
    case.train(*[1.0] * HEALTHY, 50.0, 60.0)
    assert high_since(case.runner) == 16
    with pytest.raises(TrainingStopped) as caught:
        case.train(70.0)
    good = tmp_path / "iter_14.pth"
    # The loss of step 16 was computed with the weights after 15 steps: iter_15.pth holds them.
    assert str(caught.value) == (
        "step 18: the loss has exploded to 70: 3 steps in a row are above 3, its level before was 1. It began in step "
        "16/100, loss 50.0000, grad norm 3, lr 5.00e-01, with the samples data.jsonl:16. The last good checkpoint is "
        f"{good} (iter_15.pth{EXPLODED} holds exploded weights). Lower lr or max_grad_norm, or raise warmup_ratio, and "
        f"begin a new run from its weights with --cfg-options load_from={good}. If such a loss is right for these "
        "data, set default_hooks.loss_guard.factor higher, or to None"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_10.pth",
        "iter_14.pth",
        f"iter_15.pth{EXPLODED}",
    ]


def test_without_a_good_checkpoint_none_is_named(tmp_path):
    save(tmp_path, 15, 16)
    case = Case(tmp_path, steps=1)
    case.train(*[1.0] * HEALTHY)
    with pytest.raises(TrainingStopped, match="checkpoint is none: nothing good was saved .*warmup_ratio. If such"):
        case.train(9.0)
    assert {path.suffix for path in tmp_path.iterdir()} == {EXPLODED}


def test_steps_in_a_row_count(tmp_path):
    case = Case(tmp_path, steps=3)
    case.train(*[1.0] * HEALTHY, *[50.0, 50.0, 1.0] * 5)
    assert high_since(case.runner) is None
    case.train(50.0)
    case.train(0.0, supervised=0)  # a step without a label says nothing
    assert high_since(case.runner) == case.runner.iter - 1


def test_a_resumed_run_counts_on(tmp_path):
    before, checkpoint = Case(tmp_path, steps=3), {}
    before.train(*[1.0] * HEALTHY, 50.0, 50.0)
    before.hook.before_save_checkpoint(before.runner, checkpoint)
    after = Case(tmp_path, steps=3)
    after.runner.iter = before.runner.iter
    after.hook.after_load_checkpoint(after.runner, checkpoint)
    with pytest.raises(TrainingStopped, match="data.jsonl:16"):
        after.train(50.0)
    fresh = Case(tmp_path, steps=3)  # load_from: a new run takes the weights alone
    fresh.hook.after_load_checkpoint(fresh.runner, checkpoint)
    fresh.train(50.0)
    assert fresh.hook._level.num_high == 1


def test_none_switches_it_off(tmp_path):
    case, checkpoint = Case(tmp_path, factor=None), {}
    case.train(*[1.0] * HEALTHY, *[1e6] * 50)
    case.hook.before_save_checkpoint(case.runner, checkpoint)
    assert checkpoint == {} and high_since(case.runner) is None


@pytest.mark.parametrize("name, value", [("factor", 1.0), ("steps", 0), ("window", 0)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LossGuardHook(**{name: value})


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data", 64)


@pytest.fixture
def absurd(toy_base, data, tmp_path):
    """Arguments and environment of a run whose rate is 1e-3 for 14 steps, then 10; it keeps one checkpoint."""
    config = edited_config(tmp_path, "toy_finetune_full", max_steps=60, save_steps=5, save_total_limit=1)
    with open(config, "a") as file:
        file.write("\nparam_scheduler = dict(type='MultiStepLR', milestones=[14], gamma=1e4, by_epoch=False)\n")

    def case(**options):
        options = dict(options, config=config, options={"train_cfg.max_epochs": 9})
        arguments, env = training(tmp_path / "run", toy_base, data, **options)
        arguments.remove("param_scheduler.warmup_ratio=0.0")
        return arguments, env

    return case


def require_stopped(run, status, said):
    assert status == 1, said[-3000:]
    [line] = [line for line in said.splitlines() if line.startswith("error")]
    assert "the loss has exploded to " in line and "It began in step 16/60, " in line and "train.jsonl:" in line
    assert f"The last good checkpoint is {run / 'iter_10.pth'} (iter_15.pth{EXPLODED} holds exploded weights)" in line
    assert "Traceback" not in said
    assert sorted(path.name for path in run.glob("iter_*")) == ["iter_10.pth", f"iter_15.pth{EXPLODED}"]


@pytest.mark.slow
def test_an_absurd_learning_rate_stops_a_run(absurd, tmp_path):
    """The update of step 15 ruins the weights, which are saved before any loss tells it."""
    arguments, env = absurd()
    command = [sys.executable, "tools/train.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    require_stopped(tmp_path / "run", done.returncode, done.stdout + done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2", "deepspeed_zero3"])
def test_all_ranks_stop_after_the_same_step(absurd, tmp_path, deepspeed):
    run = run_forked(*absurd(processes=2, deepspeed=deepspeed), tmp_path / "run", processes=2)
    assert run.codes == [1, 1]
    require_stopped(tmp_path / "run", run.codes[0], run.output)
    assert "error" not in (tmp_path / "run.rank1.log").read_text()


@pytest.mark.slow
def test_a_healthy_run_of_single_samples_goes_through(toy_base, data, tmp_path):
    """The shipped rate and warm-up with the noisiest steps there are; no checkpoint waits."""
    config = edited_config(tmp_path, "toy_finetune_full", max_epochs=3, save_steps=10)
    options = {
        "train_dataloader.batch_size": 1,
        "optim_wrapper.optimizer.lr": 2e-3,
        "param_scheduler.warmup_ratio": 0.03,
    }
    options |= {"train_cfg.max_epochs": 3}
    run = train_forked(tmp_path / "run", toy_base, data, config=config, options=options)
    assert run.ok and len(logged(tmp_path / "run")) == 3 * 64 and " waits: " not in run.output, run.output[-2000:]
