"""Processes that load data end with the training process, however it ends, and need nothing in a user's config."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.parallel_case import STEP_LINE, write_dataset
from tests.process_table import is_alive
from xtuner_plugins.datasets import MultimodalDataset

SECONDS = 5


def descendants(pid: int) -> set[int]:
    """Ids of all living processes below `pid`."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def left_after(seconds: float, pids: set[int]) -> list[str]:
    """Command lines of those that still live after a while; they are ended."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = []
    for pid in filter(is_alive, pids):
        left.append(command_line(pid))
        os.kill(pid, signal.SIGKILL)
    return left


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
        "train_dataloader.dataset.cache_dir": tmp_path / "cache",
        "train_dataloader.num_workers": 2,
        "default_hooks.logger.interval": 1,
    }
    command = [
        sys.executable,
        "tools/train.py",
        "configs/toy/toy_finetune_packed.py",
        "--work-dir",
        str(tmp_path / "run"),
    ]
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
    below = descendants(launcher.pid)
    assert below, "".join(seen[-30:])
    training = min(below)  # the launcher's only child
    assert len(below) >= 3, [command_line(pid) for pid in below]
    time.sleep(1)  # until the queues are full
    os.kill(training, signal.SIGKILL)
    assert left_after(SECONDS, below) == []
    launcher.communicate(timeout=HANGS_AFTER)


def tiny_records(path: Path, num: int) -> Path:
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "%d."}]
    line = json.dumps({"conversations": turns}) + "\n"
    path.write_text("".join(line % number for number in range(num)))
    return path


def planned(base, path, **settings) -> MultimodalDataset:
    dataset = MultimodalDataset(base, str(path), cache_dir=str(path) + ".cache", **settings)
    dataset.layout(num_workers=0)
    return dataset


def test_what_crosses_to_a_worker_does_not_grow_with_the_records(data_base, tmp_path):
    """Neither offsets nor plan: 37 bytes a record were copied into every worker."""
    sizes = []
    for num in (1000, 12_000):
        dataset = planned(data_base, tiny_records(tmp_path / f"{num}.jsonl", num), repeat_times=[1.5])
        crossed = pickle.dumps(dataset)
        again = pickle.loads(crossed)
        for index in (0, num - 1, num + 7):
            assert torch.equal(again[index]["input_ids"], dataset[index]["input_ids"])
            assert again[index]["source"] == dataset[index]["source"]
        sizes.append(len(crossed))
    arrays = [again.sources[0].index.spans, *again.picks, *again._plan]
    assert not any(array.flags.owndata for array in arrays)
    assert sizes[1] < sizes[0]  # 1,000 records still cross in memory


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_started_afresh_map_the_index_and_give_the_same_samples(method, data_base, tmp_path):
    dataset = planned(data_base, tiny_records(tmp_path / "data.jsonl", 30_000))
    places = range(0, 30_000, 1000)
    loader = DataLoader(
        dataset, None, sampler=places, num_workers=1, multiprocessing_context=method, persistent_workers=True
    )
    for sample, place in zip(loader, places, strict=True):
        assert torch.equal(sample["input_ids"], dataset[place]["input_ids"])
        assert sample["source"] == dataset[place]["source"]
    (worker,) = multiprocessing.active_children()
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "/index.npy" in maps
