"""Bytes by name: each content once, within the limit, whole, from many processes."""

import multiprocessing
import os
import random
import time

import pytest

from tests.conftest import HANGS_AFTER
from xtuner_plugins.datasets.stores import byte_cache
from xtuner_plugins.datasets.stores.byte_cache import FOLDERS, GIB, ByteCache


def contents(cache):
    return [path for path in (cache.directory / "contents").rglob("*") if path.is_file()]


def test_equal_bytes_are_stored_once(tmp_path):
    cache = ByteCache(tmp_path, 1 << 24)
    assert cache.get("a") is None
    cache.put("a", b"same")
    cache.put("b", b"same")
    cache.put("c", b"")
    assert cache.get("a") == cache.get("b") == b"same" and cache.get("c") == b"" and len(contents(cache)) == 2
    cache.put("a", b"other")
    assert cache.get("a") == b"other" and cache.get("b") == b"same"
    assert ByteCache(tmp_path, 1 << 24).get("b") == b"same"


def test_the_least_recently_used_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_cache, "LEAST_SHARE", 10_000)
    monkeypatch.setattr(byte_cache, "bytes_hash", lambda data: f"00{data[:8].hex()}")  # all in one part
    cache, size = ByteCache(tmp_path, FOLDERS * 10_000), 1000
    for number in range(10):
        cache.put(str(number), bytes([number]) * size)
        os.utime(tmp_path / "contents/00" / f"00{bytes([number] * 8).hex()}", (number, number))
    assert cache.get("0") is not None  # is the last one used now
    cache.put("10", bytes([10]) * size)
    held = [number for number in range(11) if cache.get(str(number)) is not None]
    assert held == [0, 4, 5, 6, 7, 8, 9, 10]
    cache.put("large", bytes(9000))
    assert cache.get("large") is None


@pytest.mark.parametrize("gib, mib", [(1, 5), (8, 30), (0.25, 1), (1, 256)])
def test_sensible_sizes_are_kept_under_small_limits(tmp_path, monkeypatch, gib, mib):
    monkeypatch.setattr(byte_cache, "bytes_hash", lambda data: f"7f{len(data)}")
    cache, data = ByteCache(tmp_path, int(gib * GIB)), bytes(mib << 20)
    cache.put("large", data)
    assert cache.get("large") == data


def test_a_limit_holds_however_small(tmp_path, monkeypatch):
    """It is divided into fewer parts, which other limits on the same directory find filled."""
    monkeypatch.setattr(byte_cache, "LEAST_SHARE", 10_000)
    draw = random.Random(1)
    for limit, num_parts in ((5_000, 1), (10_000, 1), (80_000, 8), (10_000_000, 256), (80_000, 8)):
        cache = ByteCache(tmp_path, limit)
        assert cache.num_parts == num_parts
        for number in range(400):
            cache.put(str(number), draw.randbytes(100 + number))
        for part in range(num_parts):
            cache._shrink(part)
        assert sum(path.stat().st_size for path in contents(cache)) <= limit


def test_what_is_too_large_to_be_kept_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(byte_cache, "print_log", lambda text, *args: said.append(text))
    cache = ByteCache(tmp_path, 1 << 20)
    for name in "ab":
        cache.put(name, bytes(1 << 20))
        assert cache.get(name) is None
    assert len(said) == 1 and "images above 0.875 MiB aren't kept; raise image_cache_gib" in said[0]


def test_an_old_name_is_asked_for_again(tmp_path, monkeypatch):
    cache = ByteCache(tmp_path, 1 << 24)
    cache.put("a", b"old")
    now = time.time()
    monkeypatch.setattr(byte_cache.time, "time", lambda: now + byte_cache.TRUSTED_SECONDS + 10)
    assert cache.get("a") is None


def test_damaged_bytes_are_no_hit(tmp_path):
    cache = ByteCache(tmp_path, 1 << 24)
    cache.put("a", b"right")
    contents(cache)[0].write_bytes(b"wrong")
    assert cache.get("a") is None and not contents(cache)


def test_a_disk_that_cant_be_written_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(byte_cache, "print_log", lambda text, *args: said.append(text))
    (tmp_path / "contents").write_text("a file where a folder should be")
    cache = ByteCache(tmp_path, 1 << 24)
    for name in "ab":
        cache.put(name, b"bytes")
        assert cache.get(name) is None
    assert len(said) == 1 and "make room, or set image_cache_gib=0" in said[0]


def use(directory, seed, limit):
    cache, draw = ByteCache(directory, limit), random.Random(seed)
    for _ in range(150):
        number = draw.randrange(200)
        expected = bytes([number]) * (500 + number)
        found = cache.get(str(number))
        assert found is None or found == expected
        cache.put(str(number), expected)


@pytest.mark.parametrize("method", ["fork"])
def test_several_processes_at_once(tmp_path, method):
    limit = 256 * 1500  # overflows
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=use, args=(tmp_path, seed, limit)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANGS_AFTER)
    assert [process.exitcode for process in processes] == [0] * 4
    found = contents(ByteCache(tmp_path, limit))
    assert found and sum(path.stat().st_size for path in found) <= limit
    assert not [path for path in found if path.name.startswith(".")]
