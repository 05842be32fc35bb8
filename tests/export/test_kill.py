"""An export killed at any moment leaves no directory that loads, and the next run starts clean."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.weights.training import make_model, save_pth, write_config
from xtuner_plugins.export.export import export
from xtuner_plugins.weights.model_view import open_model

NUM_POINTS = 20
# The child kills itself at the n-th event that touches the disk; events are counted in a first, whole run.
CHILD = """
import os, shutil, signal, sys
from xtuner_plugins.export import export as module
from xtuner_plugins.weights import writer
config, checkpoint, out, force = sys.argv[1:5]

state = {"armed": False, "left": 0, "seen": 0}
def hook(event, args):
    if not state["armed"] or event not in ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        return
    state["seen"] += 1
    if state["seen"] == state["left"]:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)

def run(kill_at):
    state.update(seen=0, left=kill_at, armed=True)
    module.export(config, checkpoint, out, max_shard_size="200KB", force=force == "1")
    state["armed"] = False
"""


def child(code, *args):
    return subprocess.run(
        [sys.executable, "-c", f"NUM = {NUM_POINTS}\n" + CHILD + code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
    )


# Forks at each point: twenty exports for the price of one start of Python.
KILL_ALL = """
def whole():
    run(0)
    if force == "0":
        shutil.rmtree(out)
    return state["seen"]
whole()  # imports open files too, once
total = whole()
points = sorted({1 + round(k * (total - 1) / (NUM - 1)) for k in range(NUM)} | {total - 1, total})
for point in points:
    folder = out + f"-at-{point}"
    os.mkdir(folder)
    if force == "1":
        shutil.copytree(out, folder + "/out")
    pid = os.fork()
    if pid == 0:
        out = folder + "/out"
        run(point)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL, point
print("points", len(points), "of", total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_killed_anywhere(toy_base, tmp_path, force):
    config = write_config(tmp_path / "c.py", toy_base)
    checkpoint = save_pth(make_model(toy_base), tmp_path / "iter_1.pth")
    work = tmp_path / "work"
    work.mkdir()
    export(config, checkpoint, tmp_path / "new", max_shard_size="200KB")
    whole = [contents(tmp_path / "new")]
    if force:  # an older export stands there; it must stay whole until the new one is
        export(config, save_pth(make_model(toy_base, seed=9), tmp_path / "old.pth"), work / "out")
        whole.append(contents(work / "out"))
    done = child(KILL_ALL, config, checkpoint, work / "out", int(force))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("points ")[1].split()[0]) >= NUM_POINTS
    for folder in sorted(work.glob("out-at-*")):
        for path in folder.iterdir():
            # What opens is the old or the new model, complete: the new one has its name before the last event.
            assert not loads(path) or contents(path) in whole, path
        if not force:
            shutil.rmtree(folder / "out", ignore_errors=True)
        export(config, checkpoint, folder / "out", force=True)
        left = {p.name for p in folder.iterdir()} - {"out"}
        assert not [n for n in left if ".partial-" in n], left


def contents(path: Path) -> dict[str, bytes]:
    """Every file of an export but the manifest, which names the paths it was made from."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "export_manifest.json"}


def loads(path: Path) -> bool:
    try:
        view = open_model(path)
        for tensor in view.tensors.values():
            tensor.read()
    except ValueError:
        return False
    return True
