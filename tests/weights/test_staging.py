"""A directory appears whole or not at all, never over what it was made from, and no kill hides an older one."""

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
from types import SimpleNamespace
from unittest import mock

from xtuner_plugins.weights import staging


def write(out, text="new", act=lambda stage: None, num_bytes=0):
    with staging.staged_directory(out, {"made": text}, num_bytes) as stage:
        (stage / "weights").write_text(text)
        act(stage)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(out, **options):
    """Writes in a forked process that must die of its own SIGKILL."""
    child = multiprocessing.get_context("fork").Process(target=write, args=(out,), kwargs=options)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def full(*_):
    with open("/dev/full", "w") as file:
        file.write("x")


def test_a_broken_change_of_places_hides_nothing(tmp_path, monkeypatch, caplog, refused):
    """At the first rename or the second: an error brings the old directory back at once, a kill at the next start."""
    out, rename = tmp_path / "out", os.rename
    for ends, at in itertools.product((full, kill), (1, 2)):
        write(out, "old")
        steps = iter([*[rename] * (at - 1), ends, rename])
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", lambda *paths, steps=steps: next(steps)(*paths))
            if ends is kill:
                killed(out)
            else:
                refused("out can't be written: the disk is full .*nothing was chang", write, out)
        assert out.exists() == (ends is full or at == 1)
        caplog.clear()
        assert staging.check_target(out, force=True, inputs={}) == out
        assert ("out is back as it was: a run that was" in caplog.text) == (ends is kill and at == 2)
        assert (out / "weights").read_text() == "old" and (out / "config.json").exists()


def test_what_is_found_beside_a_directory(tmp_path, refused):
    """A replaced one comes back where it is whole and the other isn't; what a killed run had begun is removed."""
    out, hidden, other = (tmp_path / name for name in ("out", ".out.replaced-1-x", f".out.partial-{os.getpid()}-x"))
    for lost, expected in ((None, "new"), ("config.json", "old")):
        write(out)
        write(hidden, "old")
        if lost:
            (out / lost).unlink()
        staging.recover(out)
        assert (out / "weights").read_text() == expected and os.listdir(tmp_path) == ["out"]
    write(hidden, "old")
    with mock.patch("shutil.rmtree"):  # as after a kill while it is removed: no part of it loads
        staging.recover(out)
    assert os.listdir(hidden) == ["weights"]
    shutil.rmtree(out)
    staging.recover(out)
    assert os.listdir(tmp_path) == []

    # 64 MiB are for small files
    with mock.patch("shutil.disk_usage", return_value=SimpleNamespace(free=64 * 2**20 + 8)):
        write(out, num_bytes=8)
        refused("out needs 0.07 GB but only 0.07 GB are free on", write, out, act=kill, num_bytes=9)
    shutil.rmtree(out)
    refused("out can't be written: the disk is full", write, out, act=full)  # met on the way
    assert os.listdir(tmp_path) == []
    killed(out, act=kill)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-") and not (left / "config.json").exists()
    other.mkdir()  # of a run that goes on
    write(out)
    assert {*os.listdir(tmp_path)} == {other.name, "out"} and {*os.listdir(out)} == {"config.json", "weights"}


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, refused):
    """Some network file systems can't flush directories; another error counts."""
    out, fsync, rename, events = tmp_path / "out", os.fsync, os.rename, []
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append((a, b)), rename(a, b)))
    write(out, act=lambda stage: ((stage / "part").mkdir(), (stage / "part" / "x").touch()))
    (stage, named), *after = events[-2:]
    written = {os.path.relpath(path, stage) for path in events[:-2]}
    assert written == {".", "part", "part/x", "weights", "config.json"} and (named, after) == (out, [str(tmp_path)])
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.EINVAL, "no")))
    write(out)
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.EIO, "no")))
    refused(r"can't be written: \[Errno 5\] no; nothing was changed", write, out)


def test_what_must_never_be_replaced(tmp_path, monkeypatch, refused):
    """Given and meant by any names: links, parents, what lies inside; and what is no model directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "models" / "base", "base")
    os.makedirs("far/below")
    os.mkdir("home")
    for file in ("home/letters.txt", "file"):
        (tmp_path / file).write_text("mine")
    links = {"link": "models", "direct": "models/base", "far/models": "../models", "deep": "far/below", "away": "home"}
    for name, target in links.items():
        os.symlink(target, name)
    outputs = {
        # The last is of the link's own parent, not of this folder.
        "overwrite the base": "link/base/ models/../models/base link deep/../models/base",
        "lie inside": "link/base/x models/base/new/deeper",
        "not a plain directory": "file away/",
        "--force replaces only model directories": "home",
    }
    table = [(out, "models/base", words) for words, outs in outputs.items() for out in outs.split()]
    table += [("link/base", given, "overwrite the base") for given in ("direct", "models/base/weights")]
    for out, given, words in table:
        refused(words, staging.check_target, out, force=True, inputs={"base": given, "data": "none"})
    for out in ("models/base2", "out"):
        assert staging.check_target(out, force=True, inputs={"base": "models/base"}) == tmp_path / out
