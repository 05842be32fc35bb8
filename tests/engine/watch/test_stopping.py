"""A run that is told to stop drops its step, saves, says how to go on, and resumes as if nothing had happened."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import HANGS_AFTER
from tests.process_table import MARK, end_all, marked, wait_until
from xtuner_plugins.engine.watch import stopping
from xtuner_plugins.engine.watch.stopping import (
    ONE_REQUEST_SECONDS,
    StopRequests,
    agree_to_stop,
    command_to_go_on,
    exit_status,
    watching,
)
from xtuner_plugins.processes import PARENT_ENDED
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint

from ..forked import train_forked
from ..parallel_case import ROOT, STEP_LINE, edited_config, logged, training, write_dataset
from ..run.test_going_on import contents, options, require_equal

SAVED, NUM_STEPS = 2, 8
OURS, XTUNER = (sys.executable, "tools/train.py"), (str(Path(sys.executable).with_name("xtuner")), "train")


def in_a_child(do) -> int:
    """The status of a forked process that does this and then exits with 7; negative for a signal."""
    child = os.fork()
    if child == 0:
        do()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def requests(monkeypatch):
    """Those of a process that got no signal yet."""
    monkeypatch.setattr(stopping, "requests", fresh := StopRequests())
    yield fresh
    signal.signal(PARENT_ENDED, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, PARENT_ENDED])
def test_a_second_request_ends_at_once_and_a_copy_of_the_first_does_not(number, requests, monkeypatch, capfd):
    assert not agree_to_stop()
    with watching():
        for each in (number, number, PARENT_ENDED):
            signal.raise_signal(each)
        noted = signal.SIGTERM if number == PARENT_ENDED else number
        assert agree_to_stop() and requests.agreed == noted and exit_status() == 128 + noted
        now = time.monotonic() + ONE_REQUEST_SECONDS
        for seconds, each, status in ((0, number, 7), (0.5, PARENT_ENDED, 7), (0.5, signal.SIGINT, 130)):
            monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda at=now + seconds: at))
            requests._since = now - ONE_REQUEST_SECONDS

            def again(each=each):
                signal.signal(each, requests.receive)  # which a child leaves to its parent
                signal.raise_signal(each)

            assert in_a_child(again) == status, (seconds, each)
    said = capfd.readouterr().err
    assert said.startswith(f"{signal.Signals(noted).name}: dropping the unfinished step") and said.count("ends at") == 1
    assert said.count("second signal: ended at once") == 1


def test_workers_leave_signals_to_their_parent_and_handlers_come_and_go(requests):
    before = signal.getsignal(signal.SIGTERM)
    with watching():
        assert in_a_child(lambda: [signal.raise_signal(signal.SIGTERM) for _ in range(2)]) == 7
    assert signal.getsignal(signal.SIGTERM) is before and requests.first is None


def test_the_end_of_the_parent_may_be_told_late(requests):
    """After the save, before the run has said how to go on; a second request still ends it."""

    def told():
        with watching():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(PARENT_ENDED)

    assert in_a_child(told) == 7
    assert in_a_child(lambda: (told(), signal.raise_signal(signal.SIGTERM))) == -signal.SIGTERM


OLD, XTUNERS = "python tools/train.py a --resume old.pth --set 'x=[1, 2]'", "xtuner train a.py 'b c'"


def test_the_command_that_goes_on_has_one_more_resume(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "a.py", "b c"])
    for started, resumed in (
        (OLD, f"{OLD} --resume"),  # the last one counts
        (f"{OLD} --resume", f"{OLD} --resume"),
        ("", f"{XTUNERS} --resume auto"),
        (f"{XTUNERS} --resume auto", f"{XTUNERS} --resume auto"),
    ):
        assert command_to_go_on({"NPROC_PER_NODE": "2", stopping.COMMAND: started}) == f"NPROC_PER_NODE=2 {resumed}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(tmp_path):
    """Accumulation, dropout, and no checkpoint of its own before the end."""
    settings = dict(accumulative_counts=4, lora_dropout=0.1, warmup_ratio=0.3, max_epochs=2, save_steps=100)
    return edited_config(tmp_path, "toy_finetune_lora", **settings)


def signal_itself(step, number, rank, times=1, in_update=False):
    """One rank gets a signal before the second micro-batch of a step (from 1), or in its update.

    The last of several comes while it saves.
    """
    from xtuner_plugins.engine.hooks.whole_checkpoint import WholeCheckpointHook
    from xtuner_plugins.engine.run import loops, steps

    run_step, save = loops.run_step, WholeCheckpointHook._save_checkpoint_with_step
    agree_to_stop, calls, asked = steps.agree_to_stop, [], []

    def send():
        if os.environ.get("RANK", "0") == str(rank):
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    def stepped(*args):
        calls.append(args)
        asked.clear()
        outputs = run_step(*args)
        if len(calls) == step and in_update:
            send()
        return outputs

    def asking():
        asked.append(True)
        if (len(calls), len(asked)) == (step, 2) and not in_update:
            send()
        return agree_to_stop()

    def saved(*args, **kwargs):
        if times > 1:
            time.sleep(ONE_REQUEST_SECONDS)
            send()
        save(*args, **kwargs)

    loops.run_step, steps.agree_to_stop, WholeCheckpointHook._save_checkpoint_with_step = stepped, asking, saved


@pytest.mark.parametrize(
    "processes, deepspeed, number",
    [
        (1, None, signal.SIGINT),
        pytest.param(2, None, signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero3", signal.SIGUSR2, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_bit_equal(toy_base, data, recipe, tmp_path, processes, deepspeed, number):
    """Only the last rank gets the signal, in the middle of a step; all drop it."""
    case = dict(processes=processes, deepspeed=deepspeed, config=recipe, options=options(processes))
    whole = train_forked(tmp_path / "whole", toy_base, data, **case)
    assert whole.ok, whole.output[-3000:]
    stop = partial(signal_itself, SAVED + 1, number, processes - 1)
    stopped = train_forked(tmp_path / "run", toy_base, data, prepare=stop, **case)
    assert stopped.codes == [128 + number] * processes, stopped.output[-3000:] + stopped.others
    saved = tmp_path / "run" / f"iter_{SAVED}.pth"
    lines = stopped.output.splitlines()
    line = lines[lines.index(f"stopped by {number.name} after step {SAVED}, saved to {saved}; go on with") + 1]
    assert line.endswith("--resume auto") and str(recipe) in line
    again = train_forked(tmp_path / "run", toy_base, data, extra=("--resume", "auto"), **case)
    assert again.ok and f"resuming from {saved}" in again.output, again.output[-3000:]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")[SAVED:]
    final = f"iter_{NUM_STEPS}.pth"
    require_equal(contents(tmp_path / "run" / final), contents(tmp_path / "whole" / final))


def test_a_second_signal_ends_at_once(toy_base, data, recipe, tmp_path):
    case = dict(config=recipe, options={**options(), "default_hooks.checkpoint.interval": 2})
    first = train_forked(
        tmp_path / "run",
        toy_base,
        data,
        **{**case, "extra": ()},
        prepare=partial(signal_itself, 3, signal.SIGTERM, 0),
    )
    assert first.codes == [128 + signal.SIGTERM]
    kept = newest_checkpoint(tmp_path / "run")
    twice = partial(signal_itself, 2, signal.SIGTERM, 0, 2)
    again = train_forked(tmp_path / "run", toy_base, data, extra=("--resume", "auto"), prepare=twice, **case)
    assert again.codes == [128 + signal.SIGTERM] and "second signal: ended at once" in again.output
    assert newest_checkpoint(tmp_path / "run") == kept and "go on with" not in again.output


def test_a_signal_in_the_last_step_leaves_a_complete_run(toy_base, data, recipe, tmp_path):
    stop = partial(signal_itself, NUM_STEPS, signal.SIGTERM, 0, in_update=True)
    run = train_forked(tmp_path / "run", toy_base, data, prepare=stop, config=recipe, options=options())
    assert run.codes == [0] and (tmp_path / "run" / f"iter_{NUM_STEPS}.pth").exists() and "go on" not in run.output


def test_without_the_optimizer_no_run_goes_on(toy_base, data, recipe, tmp_path):
    weights_only = {**options(), "default_hooks.checkpoint.save_optimizer": False}
    stop = partial(signal_itself, SAVED + 1, signal.SIGTERM, 0)
    run = train_forked(tmp_path / "run", toy_base, data, prepare=stop, config=recipe, options=weights_only)
    assert run.codes == [128 + signal.SIGTERM] and "not resumable" in run.output
    assert f"stopped by SIGTERM after step {SAVED}; no checkpoint to resume from" in run.output
    assert "go on with" not in run.output
    again = train_forked(tmp_path / "run", toy_base, data, extra=("--resume", "auto"), config=recipe, options=options())
    assert again.codes == [2] and "load_from=" in again.errors[0]


class Started:
    """A long training as a user starts it, in a session of its own, which is as a terminal."""

    def __init__(self, tmp_path, toy_base, data, command, processes, deepspeed=None):
        self.work_dir, self.mark = tmp_path / "run", str(tmp_path)
        settings = {"train_cfg.max_epochs": 2000, "train_dataloader.num_workers": 1}
        settings |= {"train_dataloader.persistent_workers": True}
        arguments, env = training(
            self.work_dir, toy_base, data, processes=processes, deepspeed=deepspeed, options=settings
        )
        self.env = {**env, MARK: self.mark}
        self.start([*command, *arguments])

    def start(self, command, **more):
        self.out = open(f"{self.work_dir}.log", "w")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdout=self.out, stderr=self.out, start_new_session=True, **more
        )
        seen = set(self.work_dir.glob("*/*.log"))
        assert wait_until(lambda: self.trains(seen) or self.process.poll() is not None, HANGS_AFTER), self.said()
        assert self.trains(seen), self.said()

    def trains(self, seen):
        """Whether a step is in a log that hasn't been seen."""
        logs = set(self.work_dir.glob("*/*.log")) - seen
        return any(STEP_LINE.search(log.read_text()) for log in logs)

    def said(self):
        return Path(self.out.name).read_text()

    def ranks(self):
        """Ids of the processes that train, not of their launchers and workers."""
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "xtuner_plugins.engine.launch.train_process" in words:
                    found.append(pid)
        return found

    def all_end(self):
        return wait_until(lambda: not marked(self.mark), HANGS_AFTER)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, processes, deepspeed, number, to",
    [
        (OURS, 1, None, signal.SIGINT, "group"),
        (OURS, 2, "deepspeed_zero3", signal.SIGTERM, "all"),
        (XTUNER, 1, None, signal.SIGINT, "group"),
        (XTUNER, 2, "deepspeed_zero2", signal.SIGTERM, "parent"),
    ],
)
def test_whoever_gets_the_signal(toy_base, data, tmp_path, command, processes, deepspeed, number, to):
    """The command alone, everything in the terminal (workers too), or every process as Slurm may do it."""
    run = Started(tmp_path, toy_base, data, command, processes, deepspeed)
    try:
        if to == "group":
            os.killpg(run.process.pid, number)
        for pid in {"parent": [run.process.pid], "all": marked(run.mark)}.get(to, []):
            os.kill(pid, number)
        run.process.wait(HANGS_AFTER)
        assert run.all_end(), run.said()[-3000:]
        if command is OURS:  # XTuner's own command hides the status, and dies of what it gets
            assert run.process.returncode == 128 + number, run.said()[-3000:]
            *_, said, line = run.said().splitlines()
        else:
            lines = run.said().splitlines()
            at = next(index for index, text in enumerate(lines) if text.startswith("stopped by"))
            said, line = lines[at : at + 2]
        saved = newest_checkpoint(run.work_dir)
        assert f"saved to {saved}; go on with" in said and read_checkpoint(saved)["has_optimizer"]
        assert "Traceback" not in run.said() or command is XTUNER
        if command is OURS and processes == 1:  # the line does go on
            run.start(line.replace("python ", f"{sys.executable} ", 1), shell=True)
            assert f"resuming from {saved}" in run.said()
            [os.kill(pid, number) for pid in run.ranks()[:1]]
            assert run.all_end() and newest_checkpoint(run.work_dir) != saved
    finally:
        end_all(run.mark)
