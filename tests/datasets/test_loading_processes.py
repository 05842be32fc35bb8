"""Processes that load data end with the training process, however it ends, not with the thread that started them."""

import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from torch.utils.data import DataLoader

from tests.process_table import ends
from xtuner_plugins.datasets import collate


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_killed_training(planned_dataset):
    context = multiprocessing.get_context("fork")
    pids = context.Queue()

    def train():
        order, ahead = list(range(37)) * 60, dict(num_workers=2, prefetch_factor=1000)  # more than a queue takes
        batches = iter(DataLoader(planned_dataset, sampler=order, collate_fn=collate, **ahead))
        next(batches)
        pids.put([each.pid for each in psutil.Process().children()])
        time.sleep(60)

    training = context.Process(target=train)
    training.start()
    workers = pids.get(timeout=60)
    time.sleep(2)  # until the queue is full
    training.kill()
    assert len(workers) == 2 and all([ends(pid, 5) for pid in workers])
    training.join()


def test_a_worker_outlives_the_thread_that_started_it(planned_dataset):
    """It ends with the training process; Linux's own signal would come with the thread's end."""
    with ThreadPoolExecutor(1) as thread:
        loader = iter(DataLoader(planned_dataset, num_workers=1, collate_fn=collate))
        thread.submit(next, loader).result()
    time.sleep(1.5)  # it looks every second
    assert len(list(loader)) == len(planned_dataset) - 1
