"""The checker as a user runs it: a process, its output, its status."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def conversation(**extra):
    return {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}], **extra}


@pytest.fixture
def project(toy_base, tmp_path):
    """A config over a jsonl with pictures; returns (config, annotation file)."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(images / "a.png")
    data = tmp_path / "data.jsonl"
    config = tmp_path / "config.py"
    config.write_text(
        "train_dataloader = dict(dataset=dict(type='xtuner_plugins.datasets.MultimodalDataset', "
        f"base={str(toy_base)!r}, data_paths=[{str(data)!r}], image_folders=[{str(images)!r}]))\n"
    )
    data.write_text("".join(json.dumps(conversation(image="a.png")) + "\n" for _ in range(5)))
    return config, data


def run(*args):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/check_data.py"), *map(str, args)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_good_data_passes(project):
    done = run(project[0])
    assert done.returncode == 0, done.stderr
    assert "all 5 records can be trained on" in done.stdout and "5 pictures" in done.stdout
    assert "checking" in done.stderr  # the progress bar


def test_every_complaint_has_its_line(project):
    config, data = project
    bad = [conversation(image="none.png"), {"text": 1}, conversation()]
    with data.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in bad)
        file.write("{broken\n")
    done = run(config, "--workers", 0)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    for number in (6, 7, 9):
        assert sum(line.startswith(f"{data}:{number}: ") for line in lines) == 1, done.stdout
    assert "9 records, 3 wrong" in done.stdout and "3 of 9 records can't be trained on" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_settings_are_complained_about_in_one_line(project, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("check_data", ROOT / "tools/check_data.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for args, words in [
        ((tmp_path / "none.py",), "isn't there"),
        ((project[0], "--cfg-options", "train_dataloader.dataset.max_tile=3"), "max_tile"),
        ((project[0], "--cfg-options", "train_dataloader.dataset.base=nowhere"), "nowhere"),
    ]:
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, args)])
        assert tool.main() == 1
        printed = capsys.readouterr().out
        assert words in printed and len(printed.splitlines()) == 1
