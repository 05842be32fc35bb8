"""An export killed at any moment leaves no directory that loads, and the next run starts clean."""

import os
import shutil
import signal
import sys
from multiprocessing import RawValue
from pathlib import Path

import pytest

from tests.weights.training import make_model, save_pth
from xtuner_plugins.export.export import export
from xtuner_plugins.weights import writer
from xtuner_plugins.weights.model_view import open_model

NUM_POINTS = 20
TOUCHING = ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")  # events that touch the disk


def forked(checkpoint: Path, out: Path, kill_at: int) -> int:
    """Exports in a fork of this process that dies at the event of this number; returns how many there were."""
    seen = RawValue("i")

    def hook(event, args):
        if event in TOUCHING:
            seen.value += 1
            if seen.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        try:
            sys.addaudithook(hook)
            export(None, checkpoint, out, force=True)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == (signal.SIGKILL if kill_at else 0)
    return seen.value


def contents(path: Path) -> dict[str, bytes]:
    """Every file of an export but the manifest, which names the paths it was made from."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "export_manifest.json"}


def loads(path: Path) -> bool:
    try:
        for tensor in open_model(path).tensors.values():
            tensor.read()
    except ValueError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_anywhere(toy_base, tmp_path, monkeypatch, replaces):
    """Where an older export stands, it stays whole until the new one is."""
    checkpoint = save_pth(make_model(toy_base), tmp_path / "iter_1.pth")
    monkeypatch.setattr(writer, "SHARD_BYTES", 200_000)
    export(None, checkpoint, tmp_path / "new")
    export(None, save_pth(make_model(toy_base, seed=9), tmp_path / "old.pth"), tmp_path / "old")
    whole = [contents(tmp_path / name) for name in ("new", "old")]

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        if replaces:
            shutil.copytree(tmp_path / "old", tmp_path / name / "out")
        return tmp_path / name

    total = forked(checkpoint, folder("counted") / "out", 0)
    points = {1 + round(k * (total - 1) / (NUM_POINTS - 1)) for k in range(NUM_POINTS)} | {total - 1}
    assert len(points) >= NUM_POINTS
    for point in sorted(points):
        place = folder(str(point))
        forked(checkpoint, place / "out", point)
        # What opens is the old or the new model, complete: the new one has its name before the last event.
        assert all(not loads(path) or contents(path) in whole for path in place.iterdir()), point
        export(None, checkpoint, place / "out", force=True)
        assert [path.name for path in place.iterdir()] == ["out"], point
