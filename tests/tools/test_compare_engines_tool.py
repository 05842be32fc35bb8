"""The comparison of engines as a user gets it: table, files, status."""

import contextlib
import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from xtuner_plugins.processes import free_port

spec = importlib.util.spec_from_file_location("engines_tool", ROOT / "tools/compare_engines.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def images(tmp_path):
    """A tile, and an image that the official rule cuts into two tiles and a thumbnail, llama.cpp into six and one."""
    folder = tmp_path / "my images"
    folder.mkdir()
    Image.effect_noise((112, 112), 90).convert("RGB").save(folder / "one.png")
    Image.effect_noise((225, 113), 90).convert("RGB").save(folder / "wide.png")
    return folder


def run(*words):
    return tool.main([str(word) for word in (*words, "--device", "cpu", "--max-new-tokens", "4")])


def test_transformers_alone(toy_base, images, tmp_path, capsys):
    words = ("--prompt", "What?", "--only", "transformers")
    files = ("--out", tmp_path / "a.json", "--html", tmp_path / "a.html")
    assert run(toy_base, images, *words, *files) == 0
    printed = capsys.readouterr().out
    assert "transformers: 2 of 2 agree" in printed and "llama.cpp: not run: not asked for" in printed
    assert "vLLM: not run: start its server" in printed and "--limit" not in printed
    assert json.loads((tmp_path / "a.json").read_text())["engines"]["transformers"]["total"] == "2 of 2 agree"
    assert "transformers" in (tmp_path / "a.html").read_text()

    (images / "zero.png").write_text("no image")
    data = tmp_path / "q.jsonl"
    data.write_text('{"image": "zero.png"}\n{"image": "one.png", "text": "?"}\n{"image": "one.png"}\n')
    assert run(toy_base, images, *words, "--data", data, "--limit", "2") == 1
    printed = capsys.readouterr().out
    assert "left out: " in printed and "unknown key 'text'" in printed and "zero.png: " in printed
    assert "the first 2 of 3 questions; --limit asks more" in printed


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give IMAGES and --prompt, or --data"),
        (["photos", "--prompt", "What?", "--server", "http://x/v1"], "--server URL and --model NAME go together"),
        (["photos", "--prompt", "What?", "--limit", "0"], "--limit 0: give at least 1"),
        (["photos", "--prompt", "What?", "--tolerance", "nan"], "--tolerance nan: give 0 or more"),
    ],
)
def test_wrong_command_lines(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.parse_args(["exports/mine", *words])
    assert said in capsys.readouterr().err


def test_wrong_paths_are_one_line(toy_base, tmp_path, capsys):
    for export, folder, said in ((toy_base, "none", "none"), (tmp_path / "none", ".", "does not exist")):
        assert run(export, folder, "--prompt", "What?") == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and said in error


def test_a_training_run_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("")
    torch.save({"meta": {"iter": 1}, "state_dict": {}}, tmp_path / "iter_1.pth")
    assert run(tmp_path, ".", "--prompt", "What?") == 1
    assert capsys.readouterr().err == f"error: {tmp_path} is a training run; export it first: xtp export\n"


@contextlib.contextmanager
def serving(model):
    """The address of our own server, a process of its own."""
    port = free_port()
    command = [sys.executable, str(ROOT / "tools/serve.py"), str(model), "--name", "toy", "--port", str(port)]
    server = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True)
    try:
        assert "http" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_every_engine_at_hand(toy_base, images, tmp_path, run_tool):
    """llama.cpp parts at the tiles of larger images, and no longer when they are sent at the size of their grid."""
    pytest.importorskip("xllamacpp")
    tool = "tools/compare_engines.py"
    with serving(toy_base) as url:
        words = (toy_base, images, "--prompt", "Which number is it?", "--server", url, "--model", "toy")
        done = run_tool(tool, *words, "--out", tmp_path / "a.json", "--html", tmp_path / "a.html")
        again = run_tool(tool, *words, "--resize-to-grid", "--out", tmp_path / "b.json")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    totals = {name: engine["total"] for name, engine in found["engines"].items()}
    ours = f"toy at {url}"
    assert totals == {
        "transformers": "2 of 2 agree",
        "llama.cpp": "1 of 2 agree; 1 part at tiles",
        ours: "2 of 2 agree",
    }
    assert "wide.png: tiles: 7 instead of 3 (2x1 and a thumbnail)" in done.stdout
    assert "Resize images to their grid before sending them" in done.stdout
    stages = {row["id"]: row["stages"] for row in found["engines"]["transformers"]["questions"]}
    assert all(stage["same"] for row in stages.values() for stage in row.values())
    # Our server tells the number of tokens and the answer.
    served = found["engines"][ours]["questions"][1]["stages"]
    assert [served[stage]["same"] for stage in served] == [True, None, None, True]
    resized = json.loads((tmp_path / "b.json").read_text())["engines"]
    assert resized["llama.cpp"]["total"] == "2 of 2 agree", again.stdout
    # Ours makes the thumbnail from the resized image then, too.
    assert resized[ours]["total"].startswith("2 of 2 agree"), again.stdout
