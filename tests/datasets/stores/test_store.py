"""Reading a store: what comes back, and what becomes of every kind of trouble."""

import multiprocessing
import os
import pickle
import time
from dataclasses import replace

import fsspec
import pytest

from tests.conftest import HANGS_AFTER
from tests.datasets.store_servers import BUCKET
from xtuner_plugins.datasets.errors import MediaError, SettingError
from xtuner_plugins.datasets.stores import store as module
from xtuner_plugins.datasets.stores.store import Store, StoreSettings

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["http", "s3"])
def store(request, server, credentials):
    """An object `data/a.bin` and one with characters that URLs give a meaning, below a prefix."""
    server.objects |= {f"{BUCKET}/data/a.bin": DATA, f"{BUCKET}/data/b?#%41 好.bin": b"odd"}
    if request.param == "http":
        return Store(f"{server.url}/{BUCKET}/data", StoreSettings(timeout=30))
    return Store(f"s3://{BUCKET}/data", StoreSettings({"endpoint_url": server.url}, timeout=30))


def test_whole_objects_and_parts(store, server):
    assert store.read("a.bin") == DATA
    assert store.read("a.bin", 0, 100) == DATA[:100] and store.read("a.bin", 100) == DATA[100:]
    assert store.read("a.bin", len(DATA)) == store.read("a.bin", len(DATA), len(DATA) + 5) == b""
    assert store.read("b?#%41 好.bin") == b"odd"
    assert store.version("a.bin") == store.version("a.bin") != store.version("none") == "image_missing"
    before = store.version("a.bin")
    server.objects[f"{BUCKET}/data/a.bin"] = DATA[1:]
    assert store.version("a.bin") != before
    server.mode = "no version"
    assert store.version("a.bin") == store.version("a.bin") != before


@pytest.mark.parametrize(
    "mode, reason, words",
    [
        ("ok", "image_missing", "no such object in the store; correct the name or image_folders"),
        ("404", "image_missing", "no such object"),
        ("403", "store_denied", "denies access .*; give credentials by environment variables, a profile"),
        ("401", "store_denied", "give credentials"),
        ("400", "store_refused", "the store refuses"),
        ("500", "store_unreachable", r"no answer in \d+ tr.* within 2 s .*; check that the store runs"),
        ("503", "store_unreachable", "no answer"),
        ("reset", "store_unreachable", "no answer"),
        ("garbage", "store_unreachable", "no answer"),
        ("slow", "store_unreachable", "no answer"),
        ("truncated", "store_unreachable", "no answer"),
        ("long", "store_unreachable", "no answer"),
    ],
)
def test_every_trouble_is_an_error_of_ours_in_time(store, server, mode, reason, words):
    name = "none.bin" if mode == "ok" else "a.bin"
    store.read("a.bin", 0, 1)  # makes the client, which takes its time
    server.mode, store.timeout = mode, 2.0
    started = time.monotonic()
    with pytest.raises(MediaError, match=words) as error:
        store.read(name)
    assert error.value.reason == reason and time.monotonic() - started < 15
    assert error.value.place == f"{store.shown}/{name}"


def test_a_store_that_comes_back_is_read(store, server, monkeypatch):
    said = []
    monkeypatch.setattr(module, "print_log", lambda text, *args: said.append(text))
    server.mode = "503"
    answers = iter(["503", "reset", "truncated"])
    server.mode = lambda path: next(answers, "ok")
    store.timeout = 20
    assert store.read("a.bin") == DATA
    assert len(said) <= 1 and all("trying again for up to 20 s" in text for text in said)


def test_after_a_read_in_vain_others_are_short_until_one_succeeds(server):
    server.objects["a/x"], server.mode = DATA, "slow"
    store = Store(f"{server.url}/a", StoreSettings(timeout=10))
    store.timeout = 2
    started = time.monotonic()
    with pytest.raises(MediaError):
        store.read("x")
    started = time.monotonic()
    with pytest.raises(MediaError, match="no answer in 1 try within 1 s"):
        store.read("x")
    assert time.monotonic() - started < 1.9
    server.mode = "ok"
    assert store.read("x") == DATA and store._answers


def test_denied_ten_times_in_a_row(server):
    server.objects["a/x"] = DATA
    store = Store(f"{server.url}/a")
    for mode, number in (("403", 9), ("ok", 1), ("403", 10)):
        assert not store.is_denied
        server.mode = mode
        for _ in range(number):
            assert store.version("x") == ("store_denied" if mode == "403" else store.stamp("x"))
    assert store.is_denied and not pickle.loads(pickle.dumps(store)).is_denied


@pytest.mark.parametrize(
    "root, options, words",
    [
        ("ftp://host/a", None, "ftp://host/a is a URL of a kind that isn't read; there are file, s3, .* memory; other"),
        ("simplecache::s3://a/b", None, "isn't read"),
        ("cluster:s3://a/b", None, "isn't read"),
        ("oss://a/b", None, "oss://a/b needs the package ossfs; pip install ossfs"),
        ("a", {"backend": "nope"}, "backend='nope' is unknown; MMEngine has local, "),
        ("a", {"backend": "petrel"}, "refuses .*petrel_client"),
    ],
)
def test_a_root_that_cant_be_used(root, options, words):
    with pytest.raises((SettingError, MediaError), match=words):
        Store(root, StoreSettings(options)).read("x")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"timeout": 0}, "store_timeout=0 can't be used; give a number, 1 or more"),
        ({"timeout": "a"}, "store_timeout='a'"),
        ({"cache_gib": -1}, "image_cache_gib=-1 can't be used; give a number, 0 or more"),
        ({"cache_gib": True}, "image_cache_gib=True"),
        ({"backend_args": {"secret": "abcdef"}}, "credential itself"),
    ],
)
def test_settings_that_cant_be_used(options, words):
    with pytest.raises(SettingError, match=words) as error:
        StoreSettings(**options)
    assert "abcdef" not in str(error.value)


def test_looking_at_a_prefix(server, credentials, tmp_path):
    settings = StoreSettings({"endpoint_url": server.url}, timeout=30)
    with pytest.raises(SettingError, match=r"s3://bucket/none: nothing is there; correct image_folders"):
        Store(f"s3://{BUCKET}/none", settings).look()
    server.objects |= {f"{BUCKET}/x.zip": DATA, f"{BUCKET}/a/b.jpg": DATA}
    Store(f"s3://{BUCKET}/a", settings).look()
    assert Store(f"s3://{BUCKET}/", settings).names() == ["a/b.jpg", "x.zip"]
    with pytest.raises(SettingError, match="s3://bucket/x.zip: is an object, not the prefix of some"):
        Store(f"s3://{BUCKET}/x.zip", settings).look()
    server.mode = "403"
    Store(f"s3://{BUCKET}/none", settings).look()  # reading may be allowed where listing isn't
    server.mode = "500"
    with pytest.raises(SettingError, match="s3://bucket/none: no answer"):
        Store(f"s3://{BUCKET}/none", replace(settings, timeout=1)).look()
    with pytest.raises(SettingError, match="nothing is there"):
        Store(str(tmp_path / "none"), StoreSettings({"backend": "local"})).look()


def test_no_message_holds_a_credential(server):
    server.objects["a/x"] = DATA
    secret = "hunter2/+"
    url = server.url.replace("://", f"://user:{secret}@")
    store = Store(f"{url}/a?X-Amz-Signature=abcdef", StoreSettings(timeout=1))
    texts = [store.shown, str(store.key()), store.place("x")]
    for mode in ("404", "403", "400", "500", "reset"):
        server.mode = mode
        with pytest.raises(MediaError) as error:
            store.read("x")
        texts.append(str(error.value))
    assert not any(word in text for text in texts for word in (secret, "hunter2", "abcdef", "user"))
    assert store.place("x").endswith("/a/x?***")


def test_what_a_library_repeats_is_hidden(server, monkeypatch):
    store = Store(f"{server.url.replace('://', '://me:hunter2@')}/a?Signature=abcdef", StoreSettings(timeout=1))

    def repeat(*args):
        raise ValueError("in me:hunter2@host with abcdef of Signature=abcdef and hunter2")

    monkeypatch.setattr(store, "_client", repeat)
    with pytest.raises(MediaError, match=r"\(in \*\*\*@host with \*\*\* of \*\*\* and \*\*\*\)"):
        store.read("x")


def test_a_signed_query_goes_with_every_name(server):
    server.objects["a/x y"] = DATA
    store = Store(f"{server.url}/a?sig=1")
    assert store.read("x y") == DATA and store.read("x y", 5, 9) == DATA[5:9]


def read_in_child(store, path, environment):
    os.environ.update(environment)  # a server of forks may have been started before this test's credentials were set
    with open(path, "w") as file:
        file.write(str(len(store.read("a.bin"))))


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(method, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))]
)
def test_processes_make_clients_of_their_own(store, method, tmp_path):
    assert store.read("a.bin") == DATA
    if method != "fork":
        assert len(pickle.dumps(store)) < 1000
    process = multiprocessing.get_context(method).Process(
        target=read_in_child, args=(store, tmp_path / "out", dict(os.environ))
    )
    process.start()
    process.join(HANGS_AFTER)
    assert process.exitcode == 0 and (tmp_path / "out").read_text() == str(len(DATA))
    assert store.read("a.bin", 0, 3) == DATA[:3] and list(store._clients) == [os.getpid()]


def test_credentials_that_are_missing(server, monkeypatch, credentials):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(MediaError, match="give credentials") as error:
        Store(f"s3://{BUCKET}/a", StoreSettings({"endpoint_url": server.url})).read("x")
    assert error.value.reason == "store_denied"
    with pytest.raises(MediaError, match="could not be found") as error:
        Store(f"s3://{BUCKET}/a", StoreSettings({"profile": "nobody"})).read("x")
    assert error.value.reason == "store_refused"


def test_a_key_tells_stores_apart(monkeypatch):
    urls = ("http://h/a", "http://h/a?set=red", "http://h/a?set=blue", "http://me@h/a", "http://you@h/a", "s3://h/a")
    keys = [Store(url).key() for url in urls] + [Store("s3://h/a", StoreSettings({"anon": True})).key()]
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        for value in ("http://one:9000", "http://two:9000"):
            monkeypatch.setenv(name, value)
            keys.append(Store("s3://h/a").key())
            assert Store("http://h/a").key() == keys[0]
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"client_kwargs": {"endpoint_url": "http://three:9000"}})
    keys.append(Store("s3://h/a").key())
    assert len(set(keys)) == len(keys)


def test_a_key_outlives_signatures_and_credentials(monkeypatch):
    signed = [f"https://me:{word}@h/a?n=1&X-Amz-Signature={word}&X-Amz-Date={word}" for word in ("abc", "def")]
    assert len({Store(url).key() for url in (*signed, "https://me@h/a?n=1")}) == 1
    before = Store("s3://h/a").key()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "k", "secret": "s"})
    assert Store("s3://h/a").key() == before
