import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from mmengine.config import Config

from xtuner_plugins.engine.check import build
from xtuner_plugins.engine.launch import entry, launcher
from xtuner_plugins.engine.launch.launcher import check_processes, main, training_processes
from xtuner_plugins.processes import STARTED_BY
from xtuner_plugins.settings import ConfigError, read_config

from ..forked import base_and_data
from ..started import OURS, XTUNER

TWO_NODES = {"NNODES": "2", "NODE_RANK": "1", "ADDR": "10.0.0.1", "NPROC_PER_NODE": "2", "PORT": "29500"}
LEAF = "toy_finetune_lora"


def test_the_processes_of_a_node():
    command, found = training_processes(["c.py"], TWO_NODES, None)
    assert command[1:] == ["-m", "xtuner_plugins.engine.launch.train_process", "c.py", "--launcher", "pytorch"]
    shared = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    shared["OMP_NUM_THREADS"] = "1"
    assert found == [{**shared, "RANK": str(2 + local), "LOCAL_RANK": str(local)} for local in range(2)]
    assert training_processes([], {}, None)[1] == [{}] and len(training_processes([], {}, "pytorch")[1][0]) > 1
    for option in ("slurm", "mpi"):  # which start their own processes
        assert training_processes([], {"NPROC_PER_NODE": "8"}, option)[1] == [{}]
    for change, message in (
        ({"PORT": ""}, "every node needs the same PORT"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2 is out of range: NNODES=2"),
        *(({"NPROC_PER_NODE": value}, "NPROC_PER_NODE") for value in ("two", "0", "-1")),
    ):
        env = {name: value for name, value in {**TWO_NODES, **change}.items() if value}
        with pytest.raises(ConfigError, match=message):
            training_processes(["c.py"], env, None)


def test_more_processes_than_gpus_or_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5})
    share = {"XTUNER_PLUGINS_SHARE_CORES": "1"}
    for num_gpus, env, remedy in (
        (2, share, "has 2 GPUs; set it to 2 or less$"),
        (0, {}, "2 cores and no GPU; .* or X"),
    ):
        monkeypatch.setattr("torch.cuda.device_count", lambda num_gpus=num_gpus: num_gpus)
        check_processes(2, {})
        with pytest.raises(ConfigError, match=remedy):
            check_processes(3, env)
    check_processes(3, share)


@pytest.mark.slow
@pytest.mark.parametrize("command", [OURS, XTUNER])
def test_a_killed_launcher_leaves_no_process(start, command):
    """As a system short of memory does it: the process that was started is killed, and only that one."""
    run = start(command, processes=2, options={"train_dataloader.num_workers": 1})
    run.trains()
    assert len(run.pids()) > 2 * 2
    run.launcher.kill()
    run.launcher.wait()
    assert run.ends(60), run.pids()


def test_a_refusal_in_training_processes_is_one_line_of_the_first(monkeypatch, capsys):
    """Under torchrun, where no launcher of ours has looked before."""
    monkeypatch.setenv(STARTED_BY, "1")
    args = SimpleNamespace(config="c.py", work_dir="none", resume="none.pth", deepspeed=None)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as ended:
            entry._settle(lambda *_: None, None, Config(), args)
        said = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and len(said) == lines and all("none.pth does not exist" in line for line in said)


def test_under_torchrun_one_rank_of_a_node_checks_what_is_read_as_ours(monkeypatch, toy_base, data, tmp_path):
    """XTuner's own parser would tear the tuple apart."""
    cfg, checked = read_config(LEAF, base_and_data(toy_base, data)), []
    cfg.dump(written := str(tmp_path / "own.py"))
    words = ["--cfg-options", "train_cfg.max_iters=2", "train_dataloader.dataset.jpeg_quality=(75, 100)"]
    monkeypatch.setattr(sys, "argv", ["train.py", written, *words, "--launcher", "pytorch"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(entry, "check_processes", lambda number, env: checked.append(number))
    monkeypatch.setattr(build, "check_config", lambda whole, deepspeed: checked.append(whole.train_cfg.max_iters))
    for rank, expected in (("1", []), ("0", [2, 2])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        entry._read_again(cfg, SimpleNamespace(config=written, deepspeed=None))
        assert checked == expected and cfg.train_dataloader.dataset.jpeg_quality == (75, 100)
    for name in ("_end_with_xtuner", "open_console", "_settle_before_building"):
        monkeypatch.setattr(entry, name, lambda: None)
    assert entry.prepare_runtime("a name") == "a name"


def test_what_reaches_the_training_processes(monkeypatch, toy_base, data, tmp_path, capsys):
    """The resolved config, and every argument; a refused setting writes nothing."""
    started = []
    monkeypatch.setattr(launcher, "run_ranks", lambda command, envs: started.append((command, envs)) or 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.delenv(entry.COMMAND, raising=False)
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "words that main was given instead"])
    monkeypatch.chdir(tmp_path)
    ready = [LEAF, "--set", f"base={toy_base}", f"data_paths={data[0]}", f"image_folders={data[1]}"]
    assert main([*ready, "pack_tokens=9"]) == 2 and started == [*tmp_path.iterdir()] == []
    assert "train_dataloader has no 'batch_sampler'" in capsys.readouterr().err
    with mock.patch("os.access", return_value=False):
        assert main([*ready, "--dry-run"]) == 2 and started == [*tmp_path.iterdir()] == []
    assert capsys.readouterr().err.endswith(f": {tmp_path} is no directory that can be written to; name another\n")
    Path("settings").touch()  # in the way of the folder
    assert main([*ready, "--work-dir", "."]) == 2 and started == []
    assert capsys.readouterr().err == "error: settings: File exists; name another path, or give permission there\n"
    given = ["lr=5e-5", "max_tiles=3", "--cfg-options", "train_cfg.max_iters=2"]
    words = ["--work-dir", "runs/a", "--deepspeed", "deepspeed_zero2", "--resume", "--seed", "7"]
    assert main([*ready, *given, "train_dataloader.dataset.jpeg_quality=(75, 100)", *words]) == 0
    [(command, envs)] = started
    assert [env["RANK"] for env in envs] == ["0", "1"]
    assert envs[0][entry.COMMAND].startswith(f"python tools/train.py {LEAF} --set base=")
    assert envs[0]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    written = Path("runs/a/settings", f"{LEAF}.py")
    resolved = ["--work-dir=runs/a", "--deepspeed=deepspeed_zero2", "--resume=auto", "--seed=7"]
    assert command[3:] == [str(written), *resolved, "--launcher", "pytorch"]
    cfg = read_config(str(written))
    assert cfg.optim_wrapper.optimizer.lr == 5e-5 and cfg.train_cfg.max_iters == 2
    assert cfg.train_dataloader.dataset.jpeg_quality == (75, 100)
    assert read_config(str(written), {"model.base": "x"}).train_dataloader.dataset.base == "x"


def test_under_xtuners_command_a_process_becomes_ours_and_ends_with_it(monkeypatch):
    """Started by our launcher, or by a program that passes signals on, it stays what it is."""
    monkeypatch.setattr(sys, "argv", ["train.py", "a config.py", "--seed", "3"])
    for name in (entry.ENDED_BY, entry.COMMAND):
        monkeypatch.setenv(name, "")
    with mock.patch.object(entry, "die_with_parent") as bound, mock.patch.object(os, "execv") as replaced:
        monkeypatch.setattr(entry, "program_of", lambda pid: "xtuner")
        monkeypatch.setenv(STARTED_BY, "us")
        entry._end_with_xtuner()
        monkeypatch.delenv(STARTED_BY)
        monkeypatch.setattr(entry, "program_of", lambda pid: "bash")
        entry._end_with_xtuner()
        assert not bound.called
        monkeypatch.setattr(entry, "program_of", lambda pid: "xtuner")
        entry._end_with_xtuner()
    bound.assert_called_once_with(os.getppid())
    words = [sys.executable, "-m", "xtuner_plugins.engine.launch.launcher", "a config.py", "--seed", "3"]
    replaced.assert_called_once_with(sys.executable, words)
    assert os.environ[entry.COMMAND] == "xtuner train 'a config.py' --seed 3"
