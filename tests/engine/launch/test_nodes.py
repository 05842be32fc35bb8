"""Two nodes on one machine: two launchers with NNODES=2 that meet at a port, each with one training process."""

import signal
import time

import pytest

from tests.engine.forked import contents, logged, require_equal
from tests.process_table import wait_until
from xtuner_plugins.processes import free_port

STARTED_IN = 600  # seconds, on a busy machine
ENDS_IN = 60  # seconds after the other node is gone
TIMEOUT = 40  # seconds that an operation waits for other ranks, where a test sets it


@pytest.fixture
def nodes(start):
    """Starts both nodes of a run in the same folder."""

    def both(options, **case):
        options = {"optim_wrapper.accumulative_counts": 2, "train_dataloader.batch_size": 1, **options}
        options |= {"default_hooks.checkpoint.interval": 2}
        port = str(free_port())
        envs = [{"NNODES": "2", "NODE_RANK": rank, "PORT": port} for rank in "01"]
        return [start(name=f"-{env['NODE_RANK']}", env=env, options=options, **case) for env in envs]

    return both


@pytest.mark.slow
def test_two_nodes_train_save_and_go_on(nodes, tmp_path):
    def trained(**extra):
        pair = nodes({"train_cfg.max_epochs": 1}, deepspeed="deepspeed_zero2", **extra)
        for node in pair:
            assert node.launcher.wait(STARTED_IN) == 0, node.said[-3000:]
        return logged(node.work_dir), contents(node.work_dir / "iter_4.pth")

    losses, last = trained()
    rest, again = trained(extra=("--resume", str(tmp_path / "run" / "iter_2.pth")))
    assert len(losses) == 4 and rest == losses[2:]
    require_equal(again, last)


@pytest.mark.parametrize(
    "victim, deepspeed, number",
    [
        pytest.param(0, None, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, "deepspeed_zero3", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, None, signal.SIGSTOP, marks=pytest.mark.release),  # waits for timeouts
    ],
)
def test_when_a_node_is_gone_the_other_ends(nodes, victim, deepspeed, number):
    """Soon, with a status and a line that tell what happened. Stopped, its connections stay, as without power."""
    stops = number == signal.SIGSTOP
    pair = nodes({"env_cfg.dist_cfg.timeout": TIMEOUT} if stops else {}, deepspeed=deepspeed)
    other, run = pair[1 - victim], pair[0].work_dir

    def has_begun():
        return list(run.glob("iter_*.pth")) or any(node.launcher.poll() is not None for node in pair)

    assert wait_until(has_begun, STARTED_IN)
    assert all(node.launcher.poll() is None for node in pair), pair[0].said[-3000:]
    pair[victim].signal_all(number)
    seconds, since = ENDS_IN + 2 * TIMEOUT * stops, time.monotonic()  # the first operation's, and that of ending
    status = other.launcher.wait(2 * seconds)
    assert time.monotonic() - since < seconds and status == 1, (status, other.said[-3000:])
    assert other.ends(10)
    [line] = [line for line in other.said.splitlines() if line.startswith("error")]
    assert "another process of this run has ended" in line and f"NODE_RANK={1 - victim} " in line, line
    assert "Traceback" not in other.said
