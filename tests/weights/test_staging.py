"""A directory appears whole or not at all, never over what it was made from, and no kill hides an older one."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.weights import staging
from xtuner_plugins.weights.reading import CheckpointError


def write(out, text="new"):
    with staging.staged_directory(out, {"made": text}, num_bytes=0) as stage:
        (stage / "weights").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_while_directories_change_places_brings_the_old_one_back(tmp_path, monkeypatch):
    out, rename, calls = tmp_path / "out", os.rename, []
    write(out, "old")
    for fails_at in (1, 2):
        calls.clear()

        def failing(source, target, fails_at=fails_at):
            calls.append(target)
            if len(calls) == fails_at:
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises(CheckpointError, match="out can't be written: the disk is full .*nothing was changed"):
            write(out)
        assert (out / "weights").read_text() == "old" and names(tmp_path) == ["out"]


def killed_child(work):
    """Runs `work` in a forked process that must die of its own SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_kill_while_directories_change_places_hides_nothing_for_long(tmp_path, caplog, killed_at):
    """Killed just before the n-th rename: the old directory away, the new one in its place."""
    out = tmp_path / "out"
    write(out, "old")

    def work():
        renames = []

        def hook(event, args):
            if event == "os.rename":
                renames.append(args)
                if len(renames) == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(out)

    killed_child(work)
    assert (out / "config.json").exists() == (killed_at == 1)
    staging.check_target(out, force=True, inputs={})  # the next start
    assert (out / "weights").read_text() == "old" and (out / "config.json").exists()
    told = f"{out} is back as it was: a run that was to replace it did not end"
    assert (told in caplog.text) == (killed_at > 1)
    write(out)
    assert (out / "weights").read_text() == "new" and names(tmp_path) == ["out"]


def test_leftovers_are_removed(tmp_path):
    """After an error at once, after a kill by the next run; the old one, where the new one is in its place."""

    def work():
        with staging.staged_directory(tmp_path / "out", {}, num_bytes=0):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError), staging.staged_directory(tmp_path / "out", {}, num_bytes=0) as stage:
        (stage / "model.safetensors").write_bytes(b"x")
        raise RuntimeError
    assert names(tmp_path) == []
    killed_child(work)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-") and not (left / "config.json").exists()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["config.json", "weights"]
    shutil.copytree(tmp_path / "out", tmp_path / ".out.replaced-1-x")
    (tmp_path / ".out.replaced-1-x" / "weights").write_text("old")
    staging.recover(tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_text() == "new" and names(tmp_path) == ["out"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    fsync, rename, events = os.fsync, os.rename, []
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("renamed", str(b))), rename(a, b)))
    out = tmp_path / "out"
    with staging.staged_directory(out, {}, num_bytes=0) as stage:
        (stage / "part").mkdir()
        (stage / "part" / "weights").write_text("x")
    named = events.index(("renamed", str(out)))
    written = {os.path.relpath(path, stage) for path in events[:named]}
    assert written == {".", "part", "part/weights", "config.json"} and events[named + 1 :] == [str(tmp_path)]


def test_what_must_never_be_replaced(tmp_path, monkeypatch):
    """Given and meant by any names: links, parents, what lies inside; and what is no model directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "models" / "base", "base")
    (tmp_path / "models" / "base" / "part").mkdir()
    (tmp_path / "far" / "below").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("mine")
    (tmp_path / "file").write_text("x")
    links = {"link": "models", "direct": "models/base", "far/models": "../models", "deep": "far/below", "gone": "no"}
    for name, target in links.items():
        os.symlink(target, name)
    # The fifth is of the link's own parent, not of this folder.
    over = ("link/base", "link/base/", "models/../models/base", "link", "deep/../models/base", "models")
    pairs = [("link/base", "models/base"), ("direct", "models/base"), ("models/base/weights", "link/base")]
    table = [(given, out, "overwrite the base") for given, out in (*pairs, *(("models/base", each) for each in over))]
    within = ("models/base/x", "link/base/x", "models/base/new/deeper", "models/base/part")
    table += [("models/base", each, "lie inside") for each in within]
    table += [(None, each, "not a plain directory") for each in ("file", "link/", "gone")]
    table += [(None, "home", "--force replaces only those")]
    for given, out, words in table:
        with pytest.raises(CheckpointError, match=words):
            staging.check_target(out, force=True, inputs={"base": given})
    assert names(tmp_path / "home") == ["letters.txt"]
    for out in ("models/base2", "models/bas", "out"):
        assert staging.check_target(out, force=True, inputs={"base": "models/base"}) == tmp_path / out


def test_a_full_disk_leaves_nothing(tmp_path):
    """A file system of 1 MiB that fills up, though enough was free when the run began."""
    code = """
import os, subprocess, sys
from pathlib import Path
from xtuner_plugins.weights import staging
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
staging._DISK_MARGIN = 0
try:
    with staging.staged_directory(folder / "out", {}, num_bytes=0) as stage:
        (stage / "weights").write_bytes(bytes(2 * 2**20))
except ValueError as error:
    print(error)
print(os.listdir(folder))
"""
    command = ["unshare", "-rm", sys.executable, "-c", code, str(tmp_path)]  # in a process that may mount for itself
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS_AFTER)
    message, left = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path / 'out'} can't be written: the disk is full") and left == "[]", done


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="out needs 1000000000.* GB but only .* are free on"):
        with staging.staged_directory(tmp_path / "out", {}, num_bytes=10**18):
            pytest.fail("began")
    assert names(tmp_path) == []
