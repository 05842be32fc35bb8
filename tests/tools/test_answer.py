"""Answers about a folder, as a user gets them: files, messages, status; stopped runs go on."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER, ROOT

spec = importlib.util.spec_from_file_location("answer_tool", ROOT / "tools/answer.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
SHORT = ("--device", "cpu", "--max-new-tokens", "4")


def make_images(folder, count):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (112, 112 * (1 + number % 3), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image {number}.png")
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_with_a_bad_file_and_going_on(toy_base, tmp_path, capsys):
    """In one process: a fresh one takes seconds to start."""
    images, out = make_images(tmp_path / "my images", 3), tmp_path / "answers.jsonl"
    (images / "notes.jpg").write_text("no image")
    command = [str(toy_base), "--images", str(images), "--prompt", "What is it?", "--out", str(out), *SHORT]
    extra = ["--batch-size", "2", "--csv", str(tmp_path / "a.csv")]
    assert tool.main([*command, *extra]) == 1
    printed, errors = capsys.readouterr()
    assert printed == f"3 of 4 questions are answered in {out}; 1 left out, named above\n"
    assert errors.startswith(f"left out: {images}/notes.jpg: ") and len(errors.splitlines()) == 1
    rows = {row["id"]: row for row in read(out)}
    assert sorted(rows) == ["image 0.png", "image 1.png", "image 2.png"]
    assert len((tmp_path / "a.csv").read_text(encoding="utf-8-sig").splitlines()) >= 4

    (images / "notes.jpg").unlink()
    out.write_bytes(out.read_bytes()[:-5])  # as a kill leaves it
    assert tool.main(command) == 0
    printed, errors = capsys.readouterr()
    assert printed == f"3 of 3 questions are answered in {out} (2 of them before)\n" and errors == ""
    assert len(read(out)) == 3 and {row["id"]: row for row in read(out)} == rows

    assert tool.main([*command, "--max-tiles", "1"]) == 1
    assert "max_tiles was None and is 1" in capsys.readouterr().err


def test_questions_of_a_file(toy_base, tmp_path, capsys):
    images, data, out = make_images(tmp_path / "images", 1), tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    data.write_text('{"id": "a", "image": "image 0.png", "question": "Where?"}\n{"id": "a"}\n')
    assert tool.main([str(toy_base), "--data", str(data), "--images", str(images), "--out", str(out), *SHORT]) == 1
    printed, errors = capsys.readouterr()
    assert printed.startswith("1 of 2 questions are answered") and f"left out: {data}:2: no question" in errors
    assert [(row["id"], row["question"]) for row in read(out)] == [("a", "Where?")]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--prompt", "What?"], "give --images and --prompt, or --data"),
        (["--images", ".", "--prompt", "What?", "--batch-size", "0"], "--batch-size 0: give at least 1"),
    ],
)
def test_wrong_command_lines(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.parse_args(["model", "--out", "a.jsonl", *words])
    assert said in capsys.readouterr().err


def test_wrong_paths_are_one_line(toy_base, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["--images", "none", "--prompt", "What?"], "--images none: no such folder"),
        (["--images", str(tmp_path / "empty"), "--prompt", "What?"], "empty holds no image"),
        (["--data", "none.jsonl"], "none.jsonl"),
    ):
        assert tool.main([str(toy_base), *words, "--out", str(tmp_path / "a.jsonl")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and said in error


@pytest.mark.slow
def test_a_killed_run_goes_on_without_doubles(toy_base, tmp_path):
    images, out = make_images(tmp_path / "images", 40), tmp_path / "a.jsonl"
    command = [sys.executable, str(ROOT / "tools/answer.py"), str(toy_base), "--images", str(images)]
    command += ["--prompt", "What?", "--out", str(out), "--max-new-tokens", "32", "--device", "cpu"]
    first = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + HANGS_AFTER
    while not (out.is_file() and out.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = out.read_bytes().count(b"\n")
    assert 3 <= before < 40
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0 and f"({before} of them before)" in done.stdout, done.stderr
    assert sorted(row["id"] for row in read(out)) == sorted(path.name for path in images.iterdir())
