"""A directory appears whole or not at all, never over what it was made from, and no kill hides an older one."""

import errno
import itertools
import os
import shutil
import signal

import pytest

from xtuner_plugins.weights import staging
from xtuner_plugins.weights.reading import CheckpointError


def write(out, text="new", act=lambda stage: None):
    with staging.staged_directory(out, {"made": text}, num_bytes=0) as stage:
        (stage / "weights").write_text(text)
        act(stage)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_child(work):
    """Runs `work` in a forked process that must die of its own SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_broken_change_of_places_hides_nothing(tmp_path, monkeypatch, caplog):
    """At the first rename or the second: an error brings the old directory back at once, a kill at the next start."""
    out, rename = tmp_path / "out", os.rename
    for ends, at in itertools.product((full, kill), (1, 2)):
        write(out, "old")
        steps = iter([rename] * (at - 1) + [ends] + [rename] * 2)
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", lambda *paths, steps=steps: next(steps)(*paths))
            if ends is kill:
                killed_child(lambda: write(out))
            else:
                with pytest.raises(CheckpointError, match="out can't be written: the disk is full .*nothing was chang"):
                    write(out)
                assert names(tmp_path) == ["out"]
        assert out.exists() == (ends is full or at == 1)
        caplog.clear()
        assert staging.check_target(out, force=True, inputs={}) == out
        assert ("out is back as it was: a run that was" in caplog.text) == (ends is kill and at == 2)
        assert (out / "weights").read_text() == "old" and (out / "config.json").exists()
    write(out)
    assert (out / "weights").read_text() == "new" and names(tmp_path) == ["out"]


def test_what_is_found_beside_a_directory(tmp_path):
    """A replaced one comes back where it is whole and the other isn't; what a killed run had begun is removed."""
    out, hidden = tmp_path / "out", tmp_path / ".out.replaced-1-x"
    for state, expected in (("whole", "new"), ("torn", "old"), (None, "old")):
        write(out)
        write(hidden, "old")
        if state != "whole":
            shutil.rmtree(out) if state is None else (out / "config.json").unlink()
        staging.recover(out)
        assert (out / "weights").read_text() == expected and names(tmp_path) == ["out"]
    hidden.mkdir()
    shutil.rmtree(out)
    staging.recover(out)
    assert names(tmp_path) == []

    killed_child(lambda: write(out, act=kill))
    left = tmp_path / names(tmp_path)[0]
    assert left.name.startswith(".out.partial-") and not (left / "config.json").exists()
    (tmp_path / f".out.partial-{os.getpid()}-x").mkdir()  # of a run that goes on
    write(out)
    assert names(tmp_path) == [f".out.partial-{os.getpid()}-x", "out"] and names(out) == ["config.json", "weights"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Some network file systems can't flush directories; another error counts."""
    fsync, rename, events = os.fsync, os.rename, []
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("renamed", str(b))), rename(a, b)))
    out, stages = tmp_path / "out", []
    write(out, act=lambda stage: (stages.append(stage), (stage / "part").mkdir(), (stage / "part" / "x").touch()))
    named = events.index(("renamed", str(out)))
    written = {os.path.relpath(path, stages[0]) for path in events[:named]}
    assert written == {".", "part", "part/x", "weights", "config.json"} and events[named + 1 :] == [str(tmp_path)]

    def failing(fd):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", failing)
    number = errno.EINVAL
    write(out)
    number = errno.EIO
    with pytest.raises(CheckpointError, match=r"can't be written: \[Errno 5\] no; nothing was changed"):
        write(out)


def test_what_must_never_be_replaced(tmp_path, monkeypatch):
    """Given and meant by any names: links, parents, what lies inside; and what is no model directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "models" / "base", "base")
    for folder in ("models/base/part", "far/below", "home"):
        os.makedirs(folder)
    for file in ("home/letters.txt", "file"):
        (tmp_path / file).write_text("mine")
    links = {"link": "models", "direct": "models/base", "far/models": "../models", "deep": "far/below", "gone": "no"}
    for name, target in {**links, "away": "home"}.items():
        os.symlink(target, name)
    refused = {
        # The last is of the link's own parent, not of this folder.
        "overwrite the base": "link/base link/base/ models/../models/base link models deep/../models/base",
        "lie inside": "models/base/x link/base/x models/base/new/deeper models/base/part",
        "not a plain directory": "file away/ gone",
        "--force replaces only those": "home",
    }
    table = [(out, "models/base", words) for words, outs in refused.items() for out in outs.split()]
    table += [("link/base", given, "overwrite the base") for given in ("direct", "models/base/weights")]
    for out, given, words in table:
        with pytest.raises(CheckpointError, match=words):
            staging.check_target(out, force=True, inputs={"base": given, "data": "none"})
    assert names(tmp_path / "home") == ["letters.txt"]
    for out in ("models/base2", "models/bas", "out"):
        assert staging.check_target(out, force=True, inputs={"base": "models/base"}) == tmp_path / out


def test_too_little_space_leaves_nothing(tmp_path):
    """Said before anything is written; or met on the way, as here by a file on a device that is always full."""
    with pytest.raises(CheckpointError, match="out needs 1000000000.* GB but only .* are free on"):
        with staging.staged_directory(tmp_path / "out", {}, num_bytes=10**18):
            pytest.fail("began")

    def fill(stage):
        os.symlink("/dev/full", stage / "more")
        (stage / "more").write_text("x")

    with pytest.raises(CheckpointError, match="out can't be written: the disk is full"):
        write(tmp_path / "out", act=fill)
    assert names(tmp_path) == []
