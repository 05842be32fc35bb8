"""What is kept on disk between runs: locks end with their holder, kills and full disks leave nothing half-written."""

import contextlib
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from tests.process_table import ends, is_alive, wait_until
from xtuner_plugins import files
from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.plan import lengths
from xtuner_plugins.files import locked, open_array, save


@contextlib.contextmanager
def process(run: Callable[[], object]):
    """A process of its own (with what this one has imported) that does `run`, and is killed at the end; its id."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        kill(pid)


def kill(pid: int) -> None:
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_lock_ends_with_its_holder_and_who_waits_says_for_whom(tmp_path, monkeypatch, capfd):
    """Not with the holder's children, which inherit its files."""
    monkeypatch.setattr(files, "FIRST_WORD", 0.1)

    def hold():
        with locked(tmp_path / "a.lock"):
            child = os.fork()
            if child:
                (tmp_path / "child").write_text(f"{child}\n")
            time.sleep(600)

    def wait():
        with locked(tmp_path / "a.lock"):
            pass

    said = ""
    with process(hold) as holder:
        assert wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().endswith("\n"), 60)
        child = int((tmp_path / "child").read_text())
        try:
            with process(wait) as waiter:
                while said.count("waiting") < 3:
                    assert is_alive(waiter)
                    time.sleep(0.05)
                    said += capfd.readouterr().err
                kill(holder)
                assert os.waitpid(waiter, 0)[1] == 0 and is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)
    for line in (line for line in said.splitlines() if line.startswith("waiting")):
        assert re.match(rf"waiting \d+ s for process {holder} on \S+ \(since 20", line), line
        assert f"holds {tmp_path / 'a.lock'} " in line and "if it isn't at work, end it" in line


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kill_while_lengths_are_measured_holds_nothing_up(data_base, write_data, qa, tmp_path, monkeypatch, capfd):
    """No process is left, and the next start takes up what is done at once."""
    monkeypatch.setattr(lengths, "CHUNK", 20)
    data = write_data([qa(f"{i} " * 40, f"word {i}. " * 40) for i in range(1500)])

    def measure():
        MultimodalDataset(data_base, data).layout(num_workers=2)

    def num_parts():
        return len(list((tmp_path / "cache").glob("*/parts/*.npz")))

    with process(measure) as first:
        assert wait_until(lambda: num_parts() > 2, 60)
        workers = [child.pid for child in psutil.Process(first).children()]
        kill(first)
    assert len(workers) == 2 and all(ends(pid, 5) for pid in workers)
    assert 2 < num_parts() < 75
    with process(measure) as again:
        assert wait_until(lambda: not is_alive(again), 60)
    assert "waiting" not in capfd.readouterr().err
    assert len(MultimodalDataset(data_base, data).lengths(0)) == 1500


REMEDY = "or name another directory by XTUNER_PLUGINS_CACHE"


def test_a_disk_that_can_not_be_written_is_one_line_with_a_remedy(data_base, write_data, qa, tmp_path, monkeypatch):
    """Every file stops at 4 KiB, as a full disk stops it; nothing half-written stays. Or the folder can't be made."""
    monkeypatch.setattr(lengths, "CHUNK", 500)
    data = write_data([qa(f"{number}?", "Yes.") for number in range(1000)])

    def measure(num_workers):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            MultimodalDataset(data_base, data).layout(num_workers=num_workers)
        except SettingError as error:
            (tmp_path / "error").write_text(str(error))

    for num_workers in (0, 2):
        with process(lambda number=num_workers: measure(number)) as pid:
            assert os.waitpid(pid, 0)[1] == 0
        words = (tmp_path / "error").read_text()
        assert words.startswith(str(tmp_path / "cache")) and words.endswith(REMEDY)
        assert ": can't be written (File too large); make room" in words and "\n" not in words
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", place := f"{data}/cache")
    with pytest.raises(SettingError, match=f"{place}.*can't be written.*{REMEDY}"):
        MultimodalDataset(data_base, data).layout()


def test_mapped_arrays_hold_no_descriptors(tmp_path):
    numbers = np.arange(1000, dtype=np.int32).reshape(-1, 5)
    save(tmp_path / "a.npy", numbers)
    before = len(os.listdir("/proc/self/fd"))
    mapped = [open_array(tmp_path / "a.npy") for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    np.testing.assert_array_equal(mapped[-1], numbers)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0][0] = 1
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(SettingError, match="a.npy: .*as many files open as it may .*ulimit -n"):
            open_array(tmp_path / "a.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
