"""A checkpoint gets its name once it is whole; kills, full disks and other models are in `test_going_on.py`."""

import tracemalloc

import torch
from mmengine.runner import runner as mmengine_runner

from xtuner_plugins.engine.hooks.whole_checkpoint import _move_into_place, tidy
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


def move(folder):
    _move_into_place(folder / ".iter_1.pth.partial", folder / "iter_1.pth")


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    """Also by a run that finds what a kill has left between or after the two renames."""
    for number, (found, do, kept) in enumerate(
        [
            ({"iter_1.pth": "old", ".iter_1.pth.partial": "new"}, move, "new"),
            ({".iter_1.pth.replaced": "old", ".iter_1.pth.partial": "new"}, tidy, "old"),
            ({".iter_1.pth.replaced": "old", "iter_1.pth": "new"}, tidy, "new"),
        ]
    ):
        folder = tmp_path / str(number)
        for name, content in found.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_text(content)
        do(folder)
        assert [path.name for path in folder.iterdir()] == ["iter_1.pth"]
        assert (folder / "iter_1.pth" / "file").read_text() == kept
