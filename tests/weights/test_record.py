"""How the record of a run names files; `tests/engine/run/test_same_run.py` compares runs."""

import hashlib

from xtuner_plugins.weights import record


def test_a_hash_is_read_once_and_follows_its_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for text in (b"one", b"two"):
        path.write_bytes(text)
        assert record.file_hash(path) == hashlib.sha256(text).hexdigest()
        with monkeypatch.context() as patched:
            patched.setattr(record.manifest, "digest", None)  # what would read it
            assert record.file_hash(path) == hashlib.sha256(text).hexdigest()
    next((tmp_path / "cache").glob("*/*/*")).write_text("[")
    assert record.file_hash(path) == hashlib.sha256(b"two").hexdigest()
