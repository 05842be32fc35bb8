"""What the checker's command opens; as a process it is tested in tests/tools/test_check_data.py."""

import json
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.cli.check_inputs import is_config, open_inputs, prepare_output
from xtuner_plugins.datasets import SettingError


@pytest.fixture
def of_files(tmp_path):
    """of_files(folders, **more) -> parsed command line over two files."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((90, 100, 3), np.uint8)).save(tmp_path / "images/a.png")
    folder, files = str(tmp_path / "images"), []
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    for name, count in (("a.jsonl", 2), ("b.jsonl", 1)):
        (tmp_path / name).write_text((json.dumps({"image": "a.png", "conversations": turns}) + "\n") * count)
        files.append(str(tmp_path / name))

    def options(folders, **more):
        plain = {"base": None, "pairs": False, "val": [], "val_image_folder": None}
        return Namespace(inputs=files, image_folder=[each or folder for each in folders], **{**plain, **more})

    return options


def test_a_bare_word_is_a_config_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    assert [is_config(name) for name in ("a.py", "finetune_lora", "shards", "a.jsonl", "x/y")] == [
        True,
        True,
        *[False] * 3,
    ]


def test_folders_go_with_files(of_files):
    (dataset,), benchmarks = open_inputs(of_files([None], val=[]))  # one folder for all
    assert [len(source.index) for source in dataset.sources] == [2, 1] and benchmarks is None
    args = of_files([None, None])
    args.val = args.inputs[:1]
    (_, held_out), _ = open_inputs(args)
    assert len(held_out) == 2
    with pytest.raises(SettingError, match="3 image folders for 2 files"):
        open_inputs(of_files([None] * 3))


def test_a_result_that_cannot_be_written(tmp_path):
    prepare_output(str(tmp_path / "new/page.html"))
    assert (tmp_path / "new").is_dir()
    with pytest.raises(SettingError, match="can't be written"):
        prepare_output(str(tmp_path))
