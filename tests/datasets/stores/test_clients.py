"""The libraries behind stores: time limits of calls that don't know any, and MMEngine's backends."""

import multiprocessing
import os
import threading
import time

import pytest
from mmengine.fileio import BaseStorageBackend, register_backend

from tests.conftest import HANGS_AFTER
from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.stores import clients
from xtuner_plugins.datasets.stores.clients import within
from xtuner_plugins.datasets.stores.store import Store, StoreSettings


def test_a_call_that_never_ends_is_left_to_itself():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.2 s"):
        within(0.2, threading.Event().wait)
    assert time.monotonic() - started < 5
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["a"])
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "store")


@register_backend("slow_for_tests", force=True)
class SlowBackend(BaseStorageBackend):
    """A backend of a user, which takes its time, and knows one object."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def get(self, filepath):
        time.sleep(self.pause)
        return b"bytes" if filepath == "prefix/a" else None

    def get_text(self, filepath):
        raise NotImplementedError


def test_a_registered_backend():
    store = Store("prefix", StoreSettings({"backend": "slow_for_tests"}))
    assert store.read("a") == b"bytes" and store.names() is None
    with pytest.raises(MediaError, match="prefix/b: no such object"):
        store.read("b")
    assert store.version("a") == store.version("a") != store.version("b") == "image_missing"
    with pytest.raises(MediaError, match=r"no answer in \d tr\w+ within 1 s \(no answer within 0.\d+ s\)"):
        Store("prefix", StoreSettings({"backend": "slow_for_tests", "pause": 60}, timeout=1)).read("a")


def test_the_local_backend_stays_in_its_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "images" / "a").write_text("a")
    store = Store(str(tmp_path / "images"), StoreSettings({"backend": "local"}))
    store.look()
    assert store.read("a") == b"a" and sorted(store.names()) == ["a", "link"]
    with pytest.raises(MediaError, match="is a link out of") as error:
        store.read("link")
    assert error.value.reason == "image_outside"


def read_and_report(store, path):
    path.write_text(f"{store.read('a')} {sorted(pid for pid, _ in clients._backends) == [os.getpid()]}")


def test_lmdb_is_opened_once_in_each_process(tmp_path):
    import lmdb

    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as database, database.begin(write=True) as writing:
        writing.put(b"a", b"bytes")
        writing.put(b"train/b", b"more")
    settings = StoreSettings({"backend": "lmdb", "db_path": str(tmp_path / "db")})
    stores = [Store("", settings), Store("", settings)]
    assert [store.read("a") for store in stores] == [b"bytes"] * 2
    assert Store("train", settings).read("b") == b"more"
    assert len({id(store._client(1).backend) for store in stores}) == 1
    process = multiprocessing.get_context("fork").Process(target=read_and_report, args=(stores[0], tmp_path / "out"))
    process.start()
    process.join(HANGS_AFTER)
    assert (tmp_path / "out").read_text().startswith("b'bytes'") and stores[0].read("a") == b"bytes"
    with pytest.raises(MediaError, match="refuses .*ascii") as error:
        stores[0].read("好")
    assert error.value.reason == "store_refused"
