"""What is kept on disk between runs: locks end with their holder, kills and full disks leave nothing half-written."""

import multiprocessing
import os
import resource
import signal
import time

import psutil
import pytest

from tests.process_table import ends, is_alive, wait_until
from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.plan import lengths
from xtuner_plugins.files import locked


@pytest.fixture
def start():
    """start(function) -> a forked process that runs it, and is killed at the end."""
    started = []

    def start(run):
        started.append(multiprocessing.get_context("fork").Process(target=run))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_a_lock_ends_with_its_holder_and_not_with_the_children_that_inherit_its_files(tmp_path, start):
    lock, place = tmp_path / "a.lock", tmp_path / "child"

    def hold():
        with locked(lock):
            if child := os.fork():
                place.write_text(f"{child}\n")
            time.sleep(600)

    def wait():
        with locked(lock):
            pass

    holder = start(hold)
    assert wait_until(lambda: place.exists() and place.read_text().endswith("\n"), 60)
    child, waiter = int(place.read_text()), start(wait)
    try:
        waiter.join(1)
        assert waiter.is_alive()
        holder.kill()
        waiter.join(60)
        assert waiter.exitcode == 0 and is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_kill_while_lengths_are_measured_holds_nothing_up(data_base, write_data, qa, cache, monkeypatch, start):
    """No process is left, and the next start takes up what is done at once."""

    def parts():
        return [path for path in cache.glob("*/parts/*.npz") if path.stem.isdigit()]  # others are being written

    monkeypatch.setattr(lengths, "CHUNK", 20)
    data = write_data([qa(f"{i} " * 40, f"word {i}. " * 40) for i in range(1500)])
    process = start(lambda: MultimodalDataset(data_base, data).layout(num_workers=2))
    assert wait_until(lambda: len(parts()) > 2, 60)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    assert len(workers) == 2 and all(ends(worker, 5) for worker in workers)
    done, measured, real = len(parts()), [], lengths.Measure.rows
    monkeypatch.setattr(lengths.Measure, "rows", lambda self, rows, *look: measured.extend(rows) or real(self, rows))
    assert len(MultimodalDataset(data_base, data).lengths(0, num_workers=0)) == 1500
    assert 2 < done < 75 and len(measured) == 1500 - 20 * done


def test_a_disk_that_can_not_be_written_is_one_line_with_a_remedy(data_base, write_data, qa, cache, monkeypatch):
    """Every file stops at 4 KiB, as a full disk stops it; nothing half-written stays."""
    monkeypatch.setattr(lengths, "CHUNK", 500)
    data = write_data([qa(f"{number}?", "Yes.") for number in range(1000)])
    limits, remedy = resource.getrlimit(resource.RLIMIT_FSIZE), "or name another directory by XTUNER_PLUGINS_CACHE$"
    for num_workers in (0, 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            words = rf"^{cache}.*: can't be written \(File too large\); make .*{remedy}"
            with pytest.raises(SettingError, match=words):
                MultimodalDataset(data_base, data).layout(num_workers=num_workers)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
