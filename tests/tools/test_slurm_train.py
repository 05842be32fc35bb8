"""The Slurm script with an `srun` and an `scontrol` that note how they were called."""

import os
import signal
import subprocess
import time

import pytest

from tests.conftest import HANGS_AFTER, ROOT

SCRIPT = ROOT / "tools" / "slurm_train.sh"
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > srun.txt; echo "$MASTER_PORT" > port.txt; echo "$XTUNER_PLUGINS_COMMAND" > command.txt
trap 'touch warned; exit 138' USR1
touch started
[ -e run_on ] || exit "${FAKE_STATUS:-0}"
while true; do sleep 0.05; done
"""


@pytest.fixture
def submit(tmp_path):
    """submit(*words, **variables): the job of the script, in a directory as Slurm's nodes find it."""
    queue = '#!/usr/bin/env bash\necho "$@" > scontrol.txt\n'
    for name, text in {"bin/srun": SRUN, "bin/scontrol": queue, ".venv/bin/python": SRUN}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {key: value for key, value in os.environ.items() if not key.startswith("MASTER_")}  # other tests' ranks
    job |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return lambda *words, **env: subprocess.Popen(
        ["bash", str(SCRIPT), *words], env={**job, "SLURM_JOB_ID": "30007", **env}, **pipes
    )


def test_one_srun_over_all_nodes_with_the_job_s_status(submit, tmp_path):
    """No count of nodes or tasks stands in the way of `sbatch --nodes=2`; the port comes from the job's number."""
    for status in (0, 3):
        job = submit("a.py", "--set", "lr=1e-4", FAKE_STATUS=str(status), SLURM_NNODES="2")
        job.communicate(timeout=HANGS_AFTER)
        assert job.returncode == status and not (tmp_path / "scontrol.txt").exists()
    noted = [(tmp_path / name).read_text() for name in ("srun.txt", "command.txt", "port.txt")]
    words = "--kill-on-bad-exit=1 .venv/bin/python tools/train.py a.py --set lr=1e-4 --launcher slurm"
    command = "sbatch tools/slurm_train.sh a.py --set lr=1e-4 \n"
    assert noted == ["\n".join(words.split()) + "\n", command, "20007\n"]
    assert "#SBATCH --ntasks-per-node=8\n" in SCRIPT.read_text() and "#SBATCH --ntasks=" not in SCRIPT.read_text()


def test_slurm_s_warning_reaches_the_ranks_and_the_job_is_queued_again_and_resumed(submit, tmp_path):
    (tmp_path / "run_on").touch()
    job = submit("a.py")
    while not (tmp_path / "started").exists():
        assert job.poll() is None
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGUSR1)
    assert "queued again" in job.communicate(timeout=HANGS_AFTER)[0] and job.returncode == 138
    assert (tmp_path / "warned").exists() and (tmp_path / "scontrol.txt").read_text() == "requeue 30007\n"
    (tmp_path / "run_on").unlink()
    submit("a.py", SLURM_RESTART_COUNT="1").communicate(timeout=HANGS_AFTER)
    assert (tmp_path / "srun.txt").read_text().endswith("--resume\n--launcher\nslurm\n")
