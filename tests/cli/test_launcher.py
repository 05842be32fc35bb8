import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.parallel_case import training, write_dataset
from tests.process_table import MARK, end_all, marked, wait_until
from xtuner_plugins.cli.launcher import main, training_command
from xtuner_plugins.engine.config_check import ConfigError


def test_one_process_needs_no_torchrun():
    command = training_command(["c.py"], {}, None)
    assert command == [sys.executable, "-m", "xtuner_plugins.cli.train_process", "c.py"]


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


def test_an_option_without_a_value_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["configs/finetune_lora.py", "--cfg-options", "train_cfg.max_iters", "100"])
    assert caught.value.code == 2 and "takes KEY=VALUE pairs" in capsys.readouterr().err


OURS, XTUNER = (sys.executable, "tools/train.py"), (str(Path(sys.executable).with_name("xtuner")), "train")


@pytest.mark.slow
@pytest.mark.parametrize("command", [OURS, XTUNER], ids=["ours", "xtuner"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_launcher_leaves_no_process(toy_base, tmp_path, monkeypatch, processes, command):
    """As a system short of memory does it: the process that was started is killed, and only that one."""
    mark = str(tmp_path)
    monkeypatch.setenv(MARK, mark)
    data = write_dataset(tmp_path / "data", 64)
    options = {"train_dataloader.num_workers": 1, "train_dataloader.batch_size": 1, "train_cfg.max_epochs": 100}
    arguments, env = training(tmp_path / "run", toy_base, data, processes=processes, options=options)
    launcher = subprocess.Popen([*command, *arguments], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: any(map(is_training, tmp_path.glob("run/*/*.log"))), 300)
        assert len(marked(mark)) > 2 * processes
        launcher.kill()
        launcher.wait()
        assert wait_until(lambda: not marked(mark), 60), marked(mark)
    finally:
        end_all(mark)


def is_training(log):
    return "Iter(train)" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", [OURS, XTUNER], ids=["ours", "xtuner"])
def test_both_commands_refuse_a_config_that_is_ignored_in_parts(tmp_path, monkeypatch, toy_base, command):
    """Before a weight is read: the base needn't even be there."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs/mine.py").write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .finetune_lora import *\nlr = 0.25\n"
    )
    env = {**os.environ, "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]}
    command = [str(ROOT / word) if word.startswith("tools/") else word for word in command]
    done = subprocess.run(
        [*command, "configs/mine.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "mine.py:4: lr = 0.25 does nothing" in errors[0], done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "work_dirs").exists()
