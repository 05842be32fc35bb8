import sys

import pytest

from xtuner_plugins.engine.config_check import ConfigError
from xtuner_plugins.engine.launcher import training_command


def test_one_process_needs_no_torchrun():
    command = training_command(["c.py"], {}, None)
    assert command == [sys.executable, "-m", "xtuner_plugins.train_process", "c.py"]


def test_several_processes_go_through_torchrun():
    command = training_command(["c.py"], {"NPROC_PER_NODE": "2", "PORT": "29511"}, None)
    assert "torch.distributed.run" in command and "--nproc_per_node=2" in command
    assert "--master_port=29511" in command and command[-2:] == ["--launcher", "pytorch"]


def test_several_nodes_need_a_port_that_all_know():
    env = {"NNODES": "2", "NODE_RANK": "1", "ADDR": "10.0.0.1"}
    with pytest.raises(ConfigError, match="PORT"):
        training_command(["c.py"], env, None)
    command = training_command(["c.py"], {**env, "PORT": "29500"}, None)
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1"} <= set(command)


def test_slurm_starts_its_own_processes():
    env = {"NPROC_PER_NODE": "8"}
    assert "torch.distributed.run" not in training_command(["c.py", "--launcher", "slurm"], env, "slurm")


@pytest.mark.parametrize("value", ["two", "0", "-1"])
def test_useless_counts_are_refused(value):
    with pytest.raises(ConfigError, match="NPROC_PER_NODE"):
        training_command(["c.py"], {"NPROC_PER_NODE": value}, None)
