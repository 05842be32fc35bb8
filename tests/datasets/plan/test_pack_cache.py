"""An epoch's packs are made once, found again, made ahead, and by no process that outlives training."""

import multiprocessing
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.process_table import ends, is_alive
from xtuner_plugins.datasets.plan import pack_cache
from xtuner_plugins.datasets.plan.pack_cache import PackCache
from xtuner_plugins.datasets.plan.packing import pack_samples


def make(cache_dir, num=300):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 8, num)
    return PackCache(cache_dir, np.arange(num) * 2, 60 * tiles + rng.integers(10, 200, num), tiles, 1000, 13)


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in vars(second))


@pytest.fixture
def packed(monkeypatch):
    """Notes how often packs are made."""
    calls = []

    def count(*args, **kwargs):
        calls.append(kwargs["seed"])
        return pack_samples(*args, **kwargs)

    monkeypatch.setattr(pack_cache, "pack_samples", count)
    return calls


def test_a_second_start_finds_the_packs(tmp_path, packed):
    first, again = make(tmp_path).packs(5), make(tmp_path).packs(5)
    assert packed == [5] and same(first, again) and sorted(again.order) == (np.arange(300) * 2).tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: (plan, 6),
        lambda plan: (replace(plan, max_tokens=1001), 5),
        lambda plan: (replace(plan, max_tiles=None), 5),
        lambda plan: (replace(plan, tiles=plan.tiles[::-1]), 5),
        lambda plan: (replace(plan, tokens=plan.tokens + 1), 5),
        lambda plan: (replace(plan, indices=plan.indices + 1), 5),
    ],
    ids=["seed", "max_tokens", "max_tiles", "tiles", "tokens", "indices"],
)
def test_whatever_changes_makes_new_packs(tmp_path, packed, change):
    make(tmp_path).packs(5)
    plan, seed = change(make(tmp_path))
    plan.packs(seed)
    assert len(packed) == 2


def test_a_damaged_file_is_made_again(tmp_path, packed):
    plan = make(tmp_path)
    first = plan.packs(5)
    path = plan.path(5)
    for damaged in (b"", path.read_bytes()[:-300], b"no archive"):
        path.write_bytes(damaged)
        assert same(plan.packs(5), first)
    assert len(packed) == 4


def test_without_a_writable_cache_every_process_packs_for_itself(tmp_path, packed, monkeypatch):
    said = []
    monkeypatch.setattr(pack_cache, "print_log", lambda text, *_: said.append(text))
    (tmp_path / "file").touch()
    assert len(make(tmp_path / "file").packs(5).order) == 300 and packed == [5]
    assert "cache directory" in said[0] and "packs for itself" in said[0]


def test_old_plans_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_cache, "KEPT", 3)
    plan = make(tmp_path)
    for seed in range(5):
        plan.packs(seed)
        time.sleep(0.02)
    assert [plan.path(seed).exists() for seed in range(5)] == [False, False, True, True, True]


def work(cache_dir, notes, start):
    def count(*args, **kwargs):
        with open(notes, "a") as file:
            file.write("packed\n")
        time.sleep(0.5)
        return pack_samples(*args, **kwargs)

    pack_cache.pack_samples = count
    start.wait()
    np.savez(f"{notes}.{multiprocessing.current_process().name}", order=make(cache_dir).packs(5).order)


def test_of_several_processes_one_packs(tmp_path):
    context = multiprocessing.get_context("fork")
    start, notes = context.Barrier(3), tmp_path / "notes"
    ranks = [context.Process(target=work, args=(tmp_path / "cache", notes, start), name=str(rank)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0] and notes.read_text() == "packed\n"
    orders = [np.load(f"{notes}.{rank}.npz")["order"].tolist() for rank in range(3)]
    assert orders[0] == orders[1] == orders[2]


def test_few_samples_are_not_packed_ahead(tmp_path):
    assert make(tmp_path).start_ahead(5) is None


def test_a_process_packs_ahead(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(pack_cache, "AHEAD", 300)
    plan = make(tmp_path / "cache")
    process = plan.start_ahead(5)
    process.join(60)
    assert process.exitcode == 0 and plan.path(5).exists()
    assert same(plan.packs(5), make(tmp_path / "other").packs(5)) and packed == [5]  # by the other
    assert plan.start_ahead(5) is None


MANY = """
import sys, time
from tests.datasets.plan.test_pack_cache import make
process = make(sys.argv[1], 1_000_000).start_ahead(5)
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_that_packs_ahead_ends_with_a_killed_training(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", MANY, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(1)
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ends(child, 5) and not make(tmp_path, 1_000_000).path(5).exists()
