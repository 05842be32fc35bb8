"""How the record of a run names files and shows differences; `tests/engine/run/test_same_run.py` compares runs."""

import hashlib
import os
import re
from unittest import mock

from xtuner_plugins.weights import record


def test_a_long_value_is_cut():
    (line,) = record.differing({"rejected": list(range(9999))}, {"rejected": []})
    assert re.fullmatch(r"rejected was \[0, 1, .*\.\.\. and is \[\]", line) and len(line) < 120


def test_a_hash_is_read_once_and_follows_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert record.file_hash(path) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(hashlib, "sha256", mock.Mock(side_effect=[hashlib.sha256(os.path.realpath(path).encode())]))
    assert record.file_hash(path) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path.write_bytes(b"two")
    assert record.file_hash(path) == hashlib.sha256(b"two").hexdigest()
