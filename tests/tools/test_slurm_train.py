"""The Slurm script with an `srun` and an `scontrol` that note how they were called."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.conftest import HANGS_AFTER, ROOT

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > srun.txt; echo "$MASTER_PORT" > port.txt; echo "$XTUNER_PLUGINS_COMMAND" > command.txt
trap 'touch warned; exit 138' USR1
touch started
[ -e run_on ] || exit "${FAKE_STATUS:-0}"
while true; do sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path):
    """A directory as a job finds it."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", '#!/usr/bin/env bash\necho "$@" > scontrol.txt\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "bin" / "srun", tmp_path / ".venv" / "bin" / "python")
    return tmp_path


def start(cluster, *args, **env):
    path = f"{cluster / 'bin'}{os.pathsep}{os.environ['PATH']}"
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MASTER_")}  # other tests' ranks
    variables = {**outside, "PATH": path, "SLURM_SUBMIT_DIR": str(cluster), "SLURM_JOB_ID": "30007", **env}
    command = ["bash", str(ROOT / "tools" / "slurm_train.sh"), *args]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def called(cluster, name):
    return (cluster / f"{name}.txt").read_text().split("\n")[:-1]


def test_the_status_of_the_run_is_the_job_s(cluster):
    for status in (0, 3):
        job = start(cluster, "configs/a.py", "--set", "lr=1e-4", FAKE_STATUS=str(status))
        job.communicate(timeout=HANGS_AFTER)
        assert job.returncode == status and not (cluster / "scontrol.txt").exists()
    expected = ".venv/bin/python tools/train.py configs/a.py --set lr=1e-4 --launcher slurm".split()
    assert called(cluster, "srun") == ["--kill-on-bad-exit=1", *expected]
    assert called(cluster, "command") == ["sbatch tools/slurm_train.sh configs/a.py --set lr=1e-4 "]


def test_srun_takes_all_nodes_of_the_job_and_all_tasks_one_port(cluster):
    """No count of nodes or tasks stands in the way of `sbatch --nodes=2`; the port comes from the job's number."""
    start(cluster, "configs/a.py", SLURM_NNODES="2").communicate(timeout=HANGS_AFTER)
    options = [word for word in called(cluster, "srun") if word.startswith("-")]
    assert options == ["--kill-on-bad-exit=1", "--launcher"] and called(cluster, "port") == ["20007"]
    script = (ROOT / "tools" / "slurm_train.sh").read_text()
    assert "#SBATCH --ntasks-per-node=8\n" in script and "#SBATCH --ntasks=" not in script


def test_slurm_s_warning_reaches_the_ranks_and_the_job_is_queued_again(cluster):
    (cluster / "run_on").touch()
    job = start(cluster, "configs/a.py")
    while not (cluster / "started").exists():
        assert job.poll() is None
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGUSR1)
    said, _ = job.communicate(timeout=HANGS_AFTER)
    assert job.returncode == 138 and "queued again" in said
    assert (cluster / "warned").exists() and called(cluster, "scontrol") == ["requeue 30007"]


def test_a_job_that_was_queued_again_goes_on(cluster):
    job = start(cluster, "configs/a.py", SLURM_RESTART_COUNT="1")
    job.communicate(timeout=HANGS_AFTER)
    assert called(cluster, "srun")[-3:] == ["--resume", "--launcher", "slurm"]


def test_without_config_or_environment_one_line_says_so(cluster):
    job = start(cluster)
    assert "usage: sbatch" in job.communicate(timeout=HANGS_AFTER)[0] and job.returncode == 2
    shutil.rmtree(cluster / ".venv")
    job = start(cluster, "configs/a.py")
    assert "make setup" in job.communicate(timeout=HANGS_AFTER)[0] and job.returncode == 2
