"""A batch that crosses in a shared block is the batch that was put in, for as long as somebody holds it."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.datasets import MultimodalDataset, collate, collate_packed, handover
from xtuner_plugins.datasets.handover import HandedBatch, hand_over


@pytest.fixture
def dataset(data_base, write_data, make_image, qa, tmp_path):
    """Records with one image, two, none, and a broken one."""
    sizes = {"a.png": (100, 90), "b.jpg": (360, 120), "c.png": (700, 650)}
    for name, size in sizes.items():
        folder = make_image(name, *size)
    records = [qa(f"Q{i}?", "A. " * i, image=list(sizes)[i % 3]) for i in range(9)]
    records += [qa("<image><image>", "Two.", image=["a.png", "b.jpg"]), qa("None?", "None."), qa(image="none.png")]
    return MultimodalDataset(
        data_base, write_data(records), folder, on_bad_sample="skip", cache_dir=str(tmp_path / "cache")
    )


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("put_together", [collate, collate_packed])
def test_batches_of_workers_equal_those_of_the_process(dataset, put_together):
    options = dict(batch_size=3, collate_fn=put_together, sampler=list(range(12)) * 3)
    expected = list(DataLoader(dataset, **options))
    held = list(DataLoader(dataset, num_workers=2, **options))  # none is given back before all have come
    assert same(held, expected)
    for batch, right in zip(DataLoader(dataset, num_workers=1, **options), expected, strict=True):
        assert type(batch) is dict and same(batch, right)
        tiles = batch["tiles"][-1:]  # a view keeps the block
    assert same(tiles, expected[-1]["tiles"][-1:])


def test_a_worker_outlives_the_thread_that_started_it(dataset):
    """It ends with the training process; Linux's own signal would come with the thread's end."""
    found = []

    def start():
        loader = iter(DataLoader(dataset, num_workers=1, collate_fn=collate, sampler=list(range(12)) * 3))
        found.extend((loader, next(loader)))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(1.5)  # it looks every second
    assert len(list(found[0])) == 35


@pytest.fixture
def worker(monkeypatch):
    """This process takes itself for a worker."""
    monkeypatch.setattr(handover, "get_worker_info", lambda: True)
    monkeypatch.setattr(handover, "_blocks", [])
    yield handover._blocks
    gc.unfreeze()


def send(batch):
    return ForkingPickler.loads(ForkingPickler.dumps(hand_over(batch)))


def batch_of(value, num=2):
    return {"tiles": [torch.full((num, 3, 28, 28), value, dtype=torch.uint8)] * 2, "sources": ["f:1"]}


def test_a_block_is_used_again_when_the_last_tensor_over_it_is_gone(worker):
    first = send(batch_of(1))
    part = first["tiles"][3, 0]
    del first
    second = send(batch_of(2))
    assert len(worker) == 2 and (part == 1).all() and (second["tiles"] == 2).all()
    del part
    third = send(batch_of(3))
    assert len(worker) == 2 and (second["tiles"] == 2).all() and (third["tiles"] == 3).all()
    del second, third
    fourth = send(batch_of(4))
    assert len(worker) == 2 and sum(block.memory[0] for block in worker) == 1 and (fourth["tiles"] == 4).all()


def test_a_block_that_is_too_small_gives_way_to_a_larger_one(worker):
    send(batch_of(1))
    large = send(batch_of(2, num=2000))
    assert len(worker) == 1 and worker[0].size > 2 * 2000 * 3 * 28 * 28 and (large["tiles"] == 2).all()


def test_no_more_blocks_are_kept_than_a_worker_needs(worker, monkeypatch):
    monkeypatch.setattr(handover, "MOST_BLOCKS", 3)
    handles = len(os.listdir("/proc/self/fd"))
    held = [send(batch_of(number)) for number in range(8)]
    assert len(worker) == 3 and all((batch["tiles"] == number).all() for number, batch in enumerate(held))
    del held
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= handles + 2 * 3 + 3  # blocks, their maps, the server of handles


def test_another_process_gives_nothing_back(worker):
    batch = send(batch_of(1))
    child = os.fork()
    if child == 0:  # a process forked from the training process drops its copy
        del batch
        os._exit(0)
    os.waitpid(child, 0)
    assert worker[0].memory[0] == 1 and (batch["tiles"] == 1).all()


def test_without_shared_memory_batches_cross_as_ever(worker, monkeypatch):
    monkeypatch.setattr(handover, "_take_block", lambda size: None)
    batch = hand_over(batch_of(5))
    assert not isinstance(batch, HandedBatch) and batch["tiles"].shape == (4, 3, 28, 28)

    def none(name):
        raise OSError("no memory")

    monkeypatch.undo()
    monkeypatch.setattr(handover, "_blocks", [])
    monkeypatch.setattr(os, "memfd_create", none)
    assert handover._take_block(10) is None


SMALL_SHM = """
import shutil, torch
from torch.utils.data import DataLoader
from xtuner_plugins.datasets.handover import hand_over

def put_together(items):
    return hand_over({"tiles": [torch.full((6, 3, 448, 448), item, dtype=torch.uint8) for item in items]})

assert shutil.disk_usage("/dev/shm").total == 1 << 20
loader = DataLoader(range(4), num_workers=2, collate_fn=put_together)
batches = [batch["tiles"][:, 0, 0, 0].tolist() for batch in loader]
assert batches == [[item] * 6 for item in range(4)], batches
"""


@pytest.mark.slow
def test_batches_need_no_dev_shm():
    """A container has 64 MB of it by default; here it has 1 MiB, and each batch takes 3.4."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    mounted = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", SMALL_SHM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, done.stderr


def test_what_is_no_tensor_goes_by_value(worker):
    batch = batch_of(1) | {"labels": torch.arange(5), "max_seqlen": 7, "dropped": [{"index": 1}]}
    got = send(batch)
    assert list(got) == ["tiles", "sources", "labels", "max_seqlen", "dropped"]
    assert same(got["labels"], torch.arange(5)) and got["max_seqlen"] == 7 and json.dumps(got["dropped"])
    got["labels"][0] = 9  # writable, as any batch


def test_no_tensor_goes_through_the_pipe(worker):
    """A pipe holds 64 KiB; what doesn't fit blocks a worker until the training process reads."""
    tensors = {
        "input_ids": torch.arange(100_000)[None],
        "attention_mask": torch.arange(99_999) % 3 == 0,
        "cu_seqlens": torch.arange(7, dtype=torch.int32),
        "nothing": torch.zeros(0, 6, dtype=torch.int64),
        "weights": torch.rand(5, 3).T,
    }
    handed = hand_over(batch_of(1) | dict(tensors))
    data = ForkingPickler.dumps(handed)
    assert len(data) < 4096
    got = ForkingPickler.loads(data)
    assert all(same(got[name], tensors[name]) for name in tensors) and (got["tiles"] == 1).all()
    handed["later"] = torch.arange(3)  # a collate function of a user's own adds to the batch
    assert same(ForkingPickler.loads(ForkingPickler.dumps(handed))["later"], torch.arange(3))
