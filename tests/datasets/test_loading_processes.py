"""Processes that load data end with the training process, however it ends, and need nothing in a user's config."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from torch.utils.data import DataLoader

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.parallel_case import STEP_LINE, write_dataset
from tests.process_table import ends
from xtuner_plugins.datasets import collate

SECONDS = 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_killed_training(toy_base, tmp_path):
    path, images = write_dataset(tmp_path, num_samples=600)
    settings = {
        "pretrained_model_name_or_path": toy_base,
        "model.base": toy_base,
        "train_dataloader.dataset.base": toy_base,
        "train_dataloader.dataset.data_paths": f"[{path}]",
        "train_dataloader.dataset.image_folders": f"[{images}]",
        "train_dataloader.num_workers": 2,
        "default_hooks.logger.interval": 1,
    }
    command = [sys.executable, "tools/train.py", "configs/toy/toy_finetune_packed.py"]
    command += ["--work-dir", str(tmp_path / "run")]
    command += ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    seen = []
    for line in launcher.stdout:
        seen.append(line)
        if STEP_LINE.search(line):
            break
    below = psutil.Process(launcher.pid).children(recursive=True)
    assert below, "".join(seen[-30:])
    assert len(below) >= 3, below
    time.sleep(1)  # until the queues are full
    below[0].kill()  # the launcher's only child
    assert all([ends(process.pid, SECONDS) for process in below])
    launcher.communicate(timeout=HANGS_AFTER)


def test_a_worker_outlives_the_thread_that_started_it(planned_dataset):
    """It ends with the training process; Linux's own signal would come with the thread's end."""
    with ThreadPoolExecutor(1) as thread:
        loader = iter(DataLoader(planned_dataset, num_workers=1, collate_fn=collate))
        thread.submit(next, loader).result()
    time.sleep(1.5)  # it looks every second
    assert len(list(loader)) == len(planned_dataset) - 1
