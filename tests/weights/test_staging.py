"""A directory appears whole or not at all, never over what it was made from, and no kill hides an older one."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.weights import staging
from xtuner_plugins.weights.loader import read_config
from xtuner_plugins.weights.reading import CheckpointError


def write(out, text="new"):
    with staging.staged_directory(out, {"made": text}, num_bytes=0) as stage:
        (stage / "weights").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        with staging.staged_directory(tmp_path / "out", {}, num_bytes=0) as stage:
            (stage / "model.safetensors").write_bytes(b"x")
            raise RuntimeError
    assert names(tmp_path) == []


def test_replaces_only_when_complete(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with staging.staged_directory(out, {"a": 1}, num_bytes=0):
        assert (out / "old").exists()
    assert names(out) == ["config.json"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_error_while_directories_change_places_brings_the_old_one_back(tmp_path, monkeypatch, fails_at):
    out, rename, calls = tmp_path / "out", os.rename, []
    write(out, "old")

    def failing(source, target):
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


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_kill_while_directories_change_places_hides_nothing_for_long(tmp_path, caplog, killed_at):
    """Killed just before the n-th rename: the old directory away, the new one in its place, its config."""
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
    if killed_at > 1:
        assert not (out / "config.json").exists()
        with pytest.raises(CheckpointError, match=rf"interrupted and left it in .*\.out\.replaced-.*back to {out}"):
            read_config(out)
    staging.check_target(out, force=True, inputs={})  # the next start
    assert (out / "weights").read_text() == "old" and (out / "config.json").exists()
    told = f"{out} is back as it was: a run that was to replace it did not end"
    assert (told in caplog.text) == (killed_at > 1)
    write(out)
    assert (out / "weights").read_text() == "new" and names(tmp_path) == ["out"]


def test_a_kill_while_the_old_one_is_removed_leaves_the_new_one(tmp_path):
    out = tmp_path / "out"
    write(out)
    shutil.copytree(out, tmp_path / ".out.replaced-1-x")
    (tmp_path / ".out.replaced-1-x" / "weights").write_text("old")
    staging.recover(out)
    assert (out / "weights").read_text() == "new" and names(tmp_path) == ["out"]


def test_leftover_of_a_killed_run_is_removed(tmp_path):
    def work():
        with staging.staged_directory(tmp_path / "out", {}, num_bytes=0) as stage:
            (stage / "config.json.partial").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_child(work)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-") and not (left / "config.json").exists()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    fsync, rename, events = os.fsync, os.rename, []
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("renamed", str(b))), rename(a, b)))
    out = tmp_path / "out"
    with staging.staged_directory(out, {}, num_bytes=0) as stage:
        (stage / "part").mkdir()
        (stage / "part" / "weights").write_text("x")
    before = events[: events.index(("renamed", str(out)))]
    assert {os.path.relpath(path, stage) for path in before} == {".", "part", "part/weights", "config.json.partial"}
    named = events.index(("renamed", str(out / "config.json")))
    assert str(tmp_path) in events[:named] and str(out) in events[named:]


def as_mounter(code, *args):
    """Runs code in a process that may mount for itself."""
    return subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
    )


class TestTargets:
    """What must never be replaced."""

    @pytest.fixture()
    def base(self, tmp_path):
        base = tmp_path / "models" / "base"
        write(base, "base")
        (base / "part").mkdir()
        return base

    def refused(self, out, inputs, pattern):
        with pytest.raises(CheckpointError, match=pattern):
            staging.check_target(out, force=True, inputs=inputs)

    @pytest.mark.parametrize("kind", ["file", "link", "dangling"])
    def test_odd_targets(self, tmp_path, kind):
        out = tmp_path / "out"
        out.write_text("x") if kind == "file" else os.symlink(tmp_path if kind == "link" else tmp_path / "nowhere", out)
        self.refused(f"{out}/" if kind == "link" else out, {}, "not a plain directory")

    @pytest.mark.parametrize(
        "given, out",
        [
            ("models/base", "link/base"),
            ("link/base", "models/base"),
            ("models/base", "link/base/"),
            ("models/base", "models/../models/base"),
            ("direct", "models/base"),
            ("models/base", "deep/../models/base"),  # of the link's own parent, not of this folder
            ("models/base", "link"),
            ("models/base/weights", "link/base"),
            ("models/base", "models"),
            ("direct", "models"),
        ],
    )
    def test_the_base_by_other_names(self, base, tmp_path, monkeypatch, given, out):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "far" / "below").mkdir(parents=True)
        os.symlink("models", "link")
        os.symlink("models/base", "direct")
        os.symlink("../models", "far/models")
        os.symlink("far/below", "deep")
        self.refused(out, {"base": given}, "overwrite the base")

    @pytest.mark.parametrize("out", ["models/base/part", "models/base/new/deeper", "link/base/part"])
    def test_inside_the_base(self, base, tmp_path, monkeypatch, out):
        monkeypatch.chdir(tmp_path)
        os.symlink("models", "link")
        self.refused(out, {"base": "models/base"}, "overwrite the base|lie inside the base")

    def test_files_that_a_base_of_links_points_at(self, tmp_path):
        """A hub's cache: snapshots of links to files in another folder."""
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "config.json").write_text("{}")
        (tmp_path / "snapshot").mkdir()
        os.symlink("../blobs/config.json", tmp_path / "snapshot" / "config.json")
        self.refused(tmp_path / "blobs", {"base": tmp_path / "snapshot"}, "overwrite the base")

    def test_a_bind_mount(self, base, tmp_path):
        code = """
import subprocess, sys
from xtuner_plugins.weights import staging
base, folder = sys.argv[1:]
for source, out in ((base + "/..", "bound/base"), (base + "/..", "bound"), (base, "bound"), (base, "bound/part")):
    subprocess.run(["mount", "--bind", source, folder + "/bound"], check=True)
    try:
        staging.check_target(folder + "/" + out, force=True, inputs={"base": base})
    except ValueError as error:
        print(error)
    subprocess.run(["umount", folder + "/bound"], check=True)
"""
        (tmp_path / "bound").mkdir()
        done = as_mounter(code, base, tmp_path)
        assert done.stdout.count("would overwrite the base") == 4, done

    def test_a_directory_that_is_no_model(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "letters.txt").write_text("mine")
        self.refused(tmp_path / "home", {}, "--force replaces only those")
        assert names(tmp_path / "home") == ["letters.txt"]

    def test_neighbors_are_free(self, base, tmp_path):
        for out in ("models/base2", "models/bas", "out"):
            assert staging.check_target(tmp_path / out, force=True, inputs={"base": base}) == tmp_path / out


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
    done = as_mounter(code, tmp_path)
    message, left = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path / 'out'} can't be written: the disk is full") and left == "[]", done


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="out needs 1000000000.* GB but only .* are free on"):
        with staging.staged_directory(tmp_path / "out", {}, num_bytes=10**18):
            pytest.fail("began")
    assert names(tmp_path) == []
