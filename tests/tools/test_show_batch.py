"""The tool in this process; what it shows is tested in tests/engine/run/test_step_batches.py."""

import importlib.util
import sys

import pytest

from tests.conftest import ROOT
from xtuner_plugins.toy.small_data import write_dataset


@pytest.fixture
def show(monkeypatch, capsys):
    """show(*args) -> (status, what was printed)."""
    spec = importlib.util.spec_from_file_location("show_batch", ROOT / "tools/show_batch.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["show_batch.py", *map(str, args)])
        try:
            status = tool.main()
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.err if status else printed.out

    return call


def test_a_step_of_a_shipped_recipe(show, toy_base, tmp_path):
    data, images = write_dataset(tmp_path / "data", 12)
    settings = ("--set", f"base={toy_base}", f"data_paths={data}", f"image_folders={images}", "batch_size=4")
    page = tmp_path / "step.html"
    status, printed = show("toy_finetune_full", *settings, "--step", 1, "--ranks", 2, "--rank", 1, "--html", page)
    assert status == 0 and "; rank 1 of 2" in printed and "micro-batch 1 of" in printed, printed
    assert printed.count(f"{data}:") >= 4 and "Step 1" in page.read_text()
    status, printed = show("toy_finetune_full", *settings, "--step", 9999)
    assert status == 2 and "there is no step 9,999" in printed and len(printed.splitlines()) == 1


def test_refusals(show, tmp_path):
    for args, words in [
        (("toy_finetune_full", "--step", 0), "count from 1"),
        (("toy_finetune_full", "--ranks", 2, "--rank", 2), "--rank from 0 to --ranks - 1"),
        (("no_such_config",), "no_such_config"),
        (("toy_finetune_full", "--checkpoint", tmp_path / "none.pth"), "none.pth"),
    ]:
        status, printed = show(*args)
        assert status == 2 and words in printed.splitlines()[-1], printed
