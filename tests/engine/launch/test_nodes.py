"""Two nodes on one machine: two launchers with NNODES=2 that meet at a port, each with one training process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.engine.parallel_case import contents, logged, require_equal, training
from tests.process_table import MARK, end_all, marked, wait_until
from xtuner_plugins.processes import free_port

STARTED_IN = 600  # seconds, on a busy machine
ENDS_IN = 60  # seconds after the other node is gone
TIMEOUT = 40  # seconds that an operation waits for other ranks, where a test sets it


class Node:
    """A launcher with its processes, which carry a mark of their own, and what they write."""

    def __init__(self, rank, port, folder, base, data, **case):
        arguments, env = training(folder / "run", base, data, processes=1, **case)
        self.mark, self.log = f"{folder}-node-{rank}", folder / f"node_{rank}.log"
        env |= {"NNODES": "2", "NODE_RANK": str(rank), "PORT": str(port), MARK: self.mark}
        with self.log.open("w") as log:
            command = [sys.executable, "tools/train.py", *arguments]
            self.launcher = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)

    @property
    def said(self):
        return self.log.read_text()

    def kill(self):
        """As a node that fails: everything at once, none has time to say a word."""
        for pid in [self.launcher.pid, *marked(self.mark)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended with its parent
                pass
        self.launcher.wait()


@pytest.fixture
def nodes(toy_base, data, tmp_path):
    """Starts both nodes of a run in the same folder."""
    started = []

    def start(**case):
        options = {"optim_wrapper.accumulative_counts": 2, "train_dataloader.batch_size": 1} | case.pop("options", {})
        port = free_port()
        pair = [Node(rank, port, tmp_path, toy_base, data, options=options, **case) for rank in (0, 1)]
        started.extend(pair)
        return pair

    yield start
    for node in started:
        end_all(node.mark)


def finish(pair):
    for node in pair:
        assert node.launcher.wait(STARTED_IN) == 0, node.said[-3000:]


@pytest.mark.slow
def test_two_nodes_train_save_and_go_on(nodes, tmp_path):
    case = dict(deepspeed="deepspeed_zero2", options={"default_hooks.checkpoint.interval": 2})
    finish(nodes(**case))
    run = tmp_path / "run"
    losses, last = logged(run), contents(run / "iter_4.pth")
    assert len(losses) == 4
    finish(nodes(**case, extra=("--resume", str(run / "iter_2.pth"))))
    assert logged(run) == losses[2:]
    require_equal(contents(run / "iter_4.pth"), last)


@pytest.mark.slow
@pytest.mark.parametrize("victim, deepspeed", [(0, None), (1, "deepspeed_zero3")])
def test_when_a_node_is_gone_the_other_ends(nodes, tmp_path, victim, deepspeed):
    pair = begun(nodes, tmp_path, deepspeed=deepspeed)
    pair[victim].kill()
    require_end(pair[1 - victim], victim)


@pytest.mark.release  # waits for timeouts
def test_when_a_node_answers_no_more_the_other_ends_after_the_timeout(nodes, tmp_path):
    """As when its power or its network fails: its connections are not closed."""
    pair = begun(nodes, tmp_path, options={"env_cfg.dist_cfg.timeout": TIMEOUT})
    for pid in marked(pair[1].mark):
        os.kill(pid, signal.SIGSTOP)
    require_end(pair[0], victim=1, seconds=2 * TIMEOUT + ENDS_IN)  # the first operation's, and that of ending


def begun(nodes, folder, options=None, **case):
    """Two nodes of a long run that has saved a checkpoint."""
    own = {"train_cfg.max_epochs": 1000, "default_hooks.checkpoint.interval": 2, **(options or {})}
    pair = nodes(options=own, **case)

    def has_begun():
        return list((folder / "run").glob("iter_*.pth")) or any(n.launcher.poll() is not None for n in pair)

    assert wait_until(has_begun, STARTED_IN) and all(n.launcher.poll() is None for n in pair), pair[0].said[-3000:]
    return pair


def require_end(other, victim, seconds=ENDS_IN):
    """It ends soon, with a status and a line that tell what happened, and leaves nothing."""
    since = time.monotonic()
    status = other.launcher.wait(2 * seconds)
    assert time.monotonic() - since < seconds and status == 1, (status, other.said[-3000:])
    assert wait_until(lambda: not marked(other.mark), 10)
    [line] = [line for line in other.said.splitlines() if line.startswith("error")]
    assert "another process of this run has ended" in line and f"NODE_RANK={1 - victim} " in line, line
    assert "Traceback" not in other.said
