"""Entries of the cache: those that nobody has used for long go, those in use and what isn't ours stay."""

import gzip
import os
import tarfile
import time

import numpy as np
import pytest

from tests.datasets.source_kinds import as_lines, talk
from tests.datasets.store_servers import ObjectServer
from xtuner_plugins.datasets import MultimodalDataset, unused
from xtuner_plugins.datasets.cache import share_array
from xtuner_plugins.datasets.records import json_index as index_module
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.unused import keep_marked, remove_unused

DAY = 86_400


def age(path, days):
    then = time.time() - days * DAY
    os.utime(path, (then, then), follow_symlinks=False)


def entries(cache):
    """Paths below the cache that may go."""
    return set(unused._entries(cache))


@pytest.fixture
def use(data_base, tmp_path, monkeypatch):
    """Opens data of each kind, as a process of its own does; returns the dataset."""
    monkeypatch.setattr(index_module, "CACHED_FROM", 1)
    server = ObjectServer()
    cache, records = tmp_path / "cache", as_lines([talk("A?", "B.")] * 3)
    (tmp_path / "a.jsonl").write_bytes(records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(records + b"\n" + records))
    with tarfile.open(tmp_path / "d.tar", "w") as shard:
        (tmp_path / "0.json").write_bytes(as_lines([talk("A?", "B.")]))
        shard.add(tmp_path / "0.json", "0.json")
    server.objects["c.jsonl"] = records + b"\n" + records + b"\n" + records

    def use(names=("a.jsonl", "b.jsonl.gz", "c.jsonl", "d.tar")):
        monkeypatch.setattr(unused, "_used", set())
        paths = [f"{server.url}/{name}" if name == "c.jsonl" else str(tmp_path / name) for name in names]
        dataset = MultimodalDataset(str(data_base), paths, cache_dir=str(cache), repeat_times=[3000] * len(paths))
        dataset.layout(num_workers=0)
        return dataset

    yield use
    server.stop()


def test_what_is_in_use_stays(use, tmp_path):
    cache = tmp_path / "cache"
    use()
    everything = entries(cache)
    assert {path.relative_to(cache).parts[0].partition("-")[0] for path in everything} >= {
        *("arrays", "fetched", "offsets", "unpacked")
    }
    for path in everything:
        age(path, 40)
    (cache / "pruned").unlink()
    dataset = use()
    assert entries(cache) == everything
    for path in everything:
        age(path, 40)
    unused._marked_at = 0.0
    assert dataset[0]  # a run that reads
    remove_unused(cache, now=True)
    assert entries(cache) == everything


def test_what_nobody_uses_goes(use, tmp_path):
    cache = tmp_path / "cache"
    use()
    for name in ("images", "hashes", "plans", "mine"):
        (cache / name).mkdir(exist_ok=True)
        (cache / name / "kept").touch()
    (cache / ("0" * 32)).mkdir()  # no lengths of ours
    (cache / ("1" * 32)).symlink_to(tmp_path)
    for path in [*cache.rglob("*"), tmp_path]:
        age(path, 40)
    (cache / "pruned").unlink(missing_ok=True)
    dataset = use(["a.jsonl"])
    left = entries(cache)
    assert {path.relative_to(cache).parts[0].partition("-")[0] for path in left} >= {"arrays", "offsets"}
    assert not [path for path in left if path.relative_to(cache).parts[0][:7] in ("unpacke", "fetched")]
    assert len([path for path in left if "-" in path.name]) == 1 and not list(cache.glob("removed-*"))
    assert (cache / ("0" * 32)).exists() and (cache / ("1" * 32)).is_symlink() and (tmp_path / "a.jsonl").exists()
    assert all((cache / name / "kept").exists() for name in ("images", "hashes", "plans", "mine"))
    assert dataset[0] and use()[0]  # what has gone is made again


def test_once_a_day(use, tmp_path):
    cache = tmp_path / "cache"
    use()
    old = next(path for path in cache.glob("unpacked/*") if path.suffix != ".lock")
    age(old, 40)
    use(["a.jsonl"])
    assert old.exists()
    age(cache / "pruned", 2)
    use(["a.jsonl"])
    assert not old.exists()


def test_a_cache_that_cant_be_written(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    remove_unused(tmp_path / "cache")
    remove_unused(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_marks_cost_a_call_and_no_more(tmp_path, monkeypatch):
    array = share_array(np.arange(1 << 16), tmp_path)
    unused.mark_used(array.path)
    age(array.path, 1)
    monkeypatch.setattr(unused, "_marked_at", time.time())
    keep_marked()
    assert unused.is_unused(array.path, DAY / 2)
    monkeypatch.setattr(unused, "_marked_at", time.time() - 2 * unused.MARKED_SECONDS)
    keep_marked()
    assert not unused.is_unused(array.path, DAY / 2)


def test_an_index_of_one_that_has_gone_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "CACHED_FROM", 1)
    (tmp_path / "a.jsonl").write_bytes(as_lines([talk("A?", "B.")] * 3))
    for _ in range(2):
        assert len(open_records(tmp_path / "a.jsonl", tmp_path / "cache")) == 3
        monkeypatch.setattr(unused, "_used", set())
        for path in entries(tmp_path / "cache"):
            age(path, 40)
        remove_unused(tmp_path / "cache", now=True)
        assert not entries(tmp_path / "cache")
