import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.parallel_case import STEP_LINE, training
from tests.process_table import MARK, end_all, marked, wait_until
from xtuner_plugins.engine.launch import entry, launcher
from xtuner_plugins.engine.launch.launcher import check_processes, main, training_processes
from xtuner_plugins.processes import STARTED_BY
from xtuner_plugins.settings import ConfigError, read_config

XTUNER = str(Path(sys.executable).with_name("xtuner"))
TWO_NODES = {"NNODES": "2", "NODE_RANK": "1", "ADDR": "10.0.0.1", "NPROC_PER_NODE": "2", "PORT": "29500"}


def test_the_processes_of_a_node():
    for env, option, ranks, meeting in (
        ({}, None, [{}], None),
        ({"NPROC_PER_NODE": "8"}, "slurm", [{}], None),  # which starts its own processes
        ({"NPROC_PER_NODE": "2", "PORT": "29511"}, None, [("0", "0"), ("1", "1")], ("2", "127.0.0.1", "29511")),
        (TWO_NODES, None, [("2", "0"), ("3", "1")], ("4", "10.0.0.1", "29500")),
    ):
        command, found = training_processes(["c.py"], env, option)
        assert command[:4] == [sys.executable, "-m", "xtuner_plugins.engine.launch.train_process", "c.py"]
        assert command[4:] == (["--launcher", "pytorch"] if meeting else [])
        if meeting:
            assert {tuple(map(each.get, ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))) for each in found} == {meeting}
            found = [(each["RANK"], each["LOCAL_RANK"]) for each in found]
        assert found == ranks
    for change, message in (
        ({"PORT": None}, "every node needs the same PORT"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2 is out of range: NNODES=2"),
        *(({"NPROC_PER_NODE": value}, "NPROC_PER_NODE") for value in ("two", "0", "-1")),
    ):
        env = {name: value for name, value in {**TWO_NODES, **change}.items() if value is not None}
        with pytest.raises(ConfigError, match=message):
            training_processes(["c.py"], env, None)


def test_more_processes_than_gpus_or_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_processes(2, {})
    with pytest.raises(ConfigError, match="has 2 GPUs; set it to 2 or less$"):
        check_processes(4, {"XTUNER_PLUGINS_SHARE_CORES": "1"})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    check_processes(2, {})
    with pytest.raises(ConfigError, match="2 cores and no GPU; set it to 2 or less, or XTUNER_PLUGINS_SHARE_CORES=1 "):
        check_processes(3, {})
    check_processes(3, {"XTUNER_PLUGINS_SHARE_CORES": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("command", [(sys.executable, "tools/train.py"), (XTUNER, "train")])
def test_a_killed_launcher_leaves_no_process(toy_base, data, tmp_path, command):
    """As a system short of memory does it: the process that was started is killed, and only that one."""
    mark, options = str(tmp_path), {"train_dataloader.num_workers": 1, "train_cfg.max_epochs": 400}
    arguments, env = training(tmp_path / "run", toy_base, data, processes=2, options=options)
    command = [*command, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**env, MARK: mark}, stdout=subprocess.DEVNULL)
    try:
        logs = tmp_path.glob
        assert wait_until(lambda: any(STEP_LINE.search(log.read_text()) for log in logs("run/*/*.log")), HANGS_AFTER)
        assert len(marked(mark)) > 2 * 2
        process.kill()
        process.wait()
        assert wait_until(lambda: not marked(mark), 60), marked(mark)
    finally:
        end_all(mark)


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


LEAF = "toy_finetune_lora"


@pytest.fixture
def started(monkeypatch, toy_base, data, tmp_path):
    """started(*arguments) -> (status, command, environments of the ranks, which aren't run); in its own folder."""
    commands = []
    monkeypatch.setattr(launcher, "run_ranks", lambda command, envs: commands.append((command, envs)) or 0)
    monkeypatch.chdir(tmp_path)
    ready = [f"base={toy_base}", f"data_paths={data[0]}", f"image_folders={data[1]}"]

    def start(*arguments):
        commands.clear()
        status = main([str(argument) for argument in [*arguments, "--set", *ready]])
        return status, *(commands[-1] if commands else (None, []))

    return start


def test_the_resolved_config_is_written_for_the_training_processes(started, tmp_path):
    words = ["--cfg-options", "train_cfg.max_iters=2", "train_dataloader.dataset.jpeg_quality=(75, 100)"]
    status, command, envs = started(LEAF, "--set", "lr=5e-5", "max_tiles=3", *words)
    written = Path("work_dirs", LEAF, "settings", f"{LEAF}.py")
    assert status == 0 and command[3:] == [str(written), f"--work-dir=work_dirs/{LEAF}"]
    cfg = read_config(str(written))
    assert cfg.optim_wrapper.optimizer.lr == 5e-5 and cfg.train_cfg.max_iters == 2
    dataset = cfg.train_dataloader.dataset
    assert dataset.max_tiles == 3 and dataset.jpeg_quality == (75, 100) and dataset.base == cfg.model.base
    assert [path.name for path in written.parent.iterdir()] == [f"{LEAF}.py"]


def test_every_argument_reaches_the_training_processes(started, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    words = ["--work-dir", "runs/a", "--deepspeed", "deepspeed_zero2", "--resume", "--seed", "7"]
    status, command, envs = started(LEAF, *words)
    at = command.index("xtuner_plugins.engine.launch.train_process")
    assert status == 0 and [env["RANK"] for env in envs] == ["0", "1"]
    assert envs[0]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert command[at + 1 :] == [
        f"runs/a/settings/{LEAF}.py",
        "--work-dir=runs/a",
        "--deepspeed=deepspeed_zero2",
        "--resume=auto",
        "--seed=7",
        "--launcher",
        "pytorch",
    ]


def test_a_refused_setting_writes_nothing(started, capsys):
    """What else is refused stands in tests/golden/wrong_inputs.tsv."""
    status, command, envs = started(LEAF, "--set", "pack_tokens=9")
    assert (status, command) == (2, None) and not Path("work_dirs").exists()
    assert "train_dataloader has no 'batch_sampler'" in capsys.readouterr().err
