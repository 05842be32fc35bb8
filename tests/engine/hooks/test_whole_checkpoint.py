"""A checkpoint gets its name once it is whole; kills, full disks and other models are in `test_going_on.py`."""

import tracemalloc
from types import SimpleNamespace

import torch
from mmengine.runner import runner as mmengine_runner

from xtuner_plugins.engine.hooks import whole_checkpoint
from xtuner_plugins.engine.hooks.whole_checkpoint import WholeCheckpointHook, _move_into_place
from xtuner_plugins.engine.run.runtime import save_directly


def test_a_file_is_written_without_a_second_copy_of_its_tensors(tmp_path, monkeypatch):
    path, content = tmp_path / "weights.pth", {"weight": torch.arange(2**22)}
    monkeypatch.setattr(mmengine_runner, "save_checkpoint", None)
    save_directly()
    tracemalloc.start()
    mmengine_runner.save_checkpoint(content, str(path), file_client_args=None, backend_args=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 < path.stat().st_size
    assert torch.equal(torch.load(path, weights_only=True)["weight"], content["weight"])


def test_a_directory_is_replaced_once_it_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(whole_checkpoint, "sync", lambda path: synced.append(path.name))
    for name in ("iter_1.pth", ".iter_1.pth.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    _move_into_place(tmp_path / ".iter_1.pth.partial", tmp_path / "iter_1.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["iter_1.pth"]
    assert (tmp_path / "iter_1.pth" / "file").read_text() == ".iter_1.pth.partial"
    assert synced == ["file", ".iter_1.pth.partial", tmp_path.name]


def test_at_the_end_a_stopped_run_alone_is_saved(monkeypatch):
    """Others are saved by the interval, and where MMEngine's ``save_last`` says so."""
    hook, saved = WholeCheckpointHook(), []
    monkeypatch.setattr(hook, "_save_checkpoint", lambda runner: saved.append(runner.train_loop._iter))
    for stopped_by, steps, expected in ((None, 3, []), (15, 0, []), (15, 3, [2])):
        monkeypatch.setattr(whole_checkpoint.requests, "agreed", stopped_by)
        hook.after_train(SimpleNamespace(iter=steps, train_loop=SimpleNamespace(_iter=steps)))
        assert saved == expected
