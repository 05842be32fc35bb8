"""How the record of a run names files and shows differences; `tests/engine/run/test_same_run.py` compares runs."""

import hashlib

from xtuner_plugins.weights import record

LONG = list(range(9999))  # which no line shows whole


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


def test_what_makes_another_run(refused):
    """The rest is compared where a run resumes, in the engine's tests."""
    data = {"name": "train", "sha256": "a", "records": 3}
    then = {
        "base": {"path": "/a", "files": {"config.json": "0" * 64}},
        "data": [data, data],
        "settings": {"model": {"r": 4}, "seed": None},
        "steps": dict.fromkeys(record.STEPS, 2),
        "versions": {"torch": "2.8"},
    }
    for now, other, notes in (
        ({}, [], []),
        ({"data": [data, data, data]}, ["data_paths had 2 files and has 3"], []),
        ({"data": [data, {**data, "records": 4}]}, ["data train: records was 3 and is 4"], []),
        ({"settings": {"model": {"r": 5}, "seed": 1}}, ["model.r was 4 and is 5"], []),
        ({"settings": {"model": {}, "seed": 1}}, ["model.r was 4 and is 6"], []),
        ({"base": {"path": "/b", "files": then["base"]["files"]}}, [], ["the base /b has the same files as /a"]),
        ({"base": {"path": "/b", "files": {}}}, ["config.json of the base /b has SHA-256 missing"], ["the base /b"]),
        ({"data": [data, {**data, "records": LONG}]}, [f"data train: records was 3 and is {str(LONG)[:80]}..."], []),
        ({"versions": {"torch": "2.9"}}, [], ["torch was '2.8' and is '2.9'"]),
        ({"steps": {**then["steps"], "ranks": 4, "max_iters": 9}}, [], ["ranks was 2 and is 4, with", "max_iters was"]),
    ):
        found = record.compare(then, {**then, **now}, {"model": {"r": 6}})
        for said, expected in zip(found, (other, notes), strict=True):
            assert len(said) == len(expected) and all(map(str.startswith, said, expected)), (said, expected)
    for broken in ({"settings": {}}, {"steps": {}}, {"data": [1]}, {"base": {"path": 1, "files": {}}}):
        refused("a.pth holds a record of its run that can't be read", record.check_form, {**then, **broken}, "a.pth")
    assert record.check_form(then, "a.pth") == then
