"""A tool says at once how it is used and what is wrong: nothing large is imported for that."""

import json
import runpy
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.golden import wrong_inputs

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
LARGE = ("deepspeed", "peft", "torch", "torchvision", "transformers", "xtuner")
# Runs a tool in a process of its own, and prints at its end which large libraries it has imported.
PROBE = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *[name for name in {LARGE!r} if name in sys.modules], file=sys.stderr)
"""


def run(tool, *words, cwd=ROOT):
    """(exit status, lines of stderr, large libraries that were imported)."""
    command = [sys.executable, "-c", PROBE, str(ROOT / "tools" / tool), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANGS_AFTER)
    lines = done.stderr.splitlines()
    assert lines and lines[-1].startswith("imported:"), done.stderr
    return done.returncode, lines[:-1], lines[-1].split()[1:]


def test_help_imports_nothing_large():
    found = {tool: run(tool, "--help")[::2] for tool in TOOLS}
    assert found == dict.fromkeys(TOOLS, (0, []))


LEAF = "toy_finetune_lora"
TEXT_ALONE = [
    ("check_data.py", ["toy_finetune_lorra"], "did you mean toy_finetune_lora"),
    ("check_data.py", [LEAF], "model directory 'work_dirs/quickstart/pretrain_mlp' isn't there"),
    ("check_data.py", [LEAF, "--set", "max_tile=3"], "did you mean max_tiles"),
    ("check_data.py", [LEAF, "--cfg-options", "lr=1"], "write optim_wrapper.optimizer.lr=..., or --set lr="),
    ("convert_to_official.py", ["no_such", "a", "b"], "config no_such does not exist"),
    ("convert_to_official.py", [LEAF, "a", "b", "--set", "max_tile=3"], "did you mean max_tiles"),
    ("configs.py", ["no_such"], "config no_such does not exist"),
    ("configs.py", [LEAF, "--set", "max_tile=3"], "did you mean max_tiles"),
    ("configs.py", ["--family", "no_such"], "families: "),
    (
        "configs.py",
        ["no_such", "--write", "out.py", "--base", "b", "--data", "d", "--images", "i"],
        "config no_such does not",
    ),
]


@pytest.fixture(scope="module")
def places(toy_base, tmp_path_factory):
    """What stands in braces above and in the table of wrong inputs."""
    return wrong_inputs.places(tmp_path_factory.mktemp("places"), toy_base)


# Calls the tool's `main` with each row of words in turn, and prints status, stderr and the large libraries until then.
IN_TURN = f"""
import contextlib, io, json, runpy, sys
main = runpy.run_path({str(ROOT / "tools" / "train.py")!r})["main"]
for words in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(words)
    print(json.dumps([status, said.getvalue().splitlines(), [name for name in {LARGE!r} if name in sys.modules]]))
"""
ROWS = {f"{row['config']} {row['words']}": row for row in wrong_inputs.rows()}
OF_TEXT, OF_BUILD = ([name for name, row in ROWS.items() if row["seen"] == seen] for seen in ("text", "build"))


def test_wrong_inputs_are_refused_before_anything_large_is_imported(places, tmp_path):
    """In one process, because each start takes a second."""
    words = json.dumps([wrong_inputs.command(ROWS[name], places) for name in OF_TEXT])
    command = [sys.executable, "-c", IN_TURN]
    done = subprocess.run(command, cwd=tmp_path, input=words, capture_output=True, text=True, timeout=HANGS_AFTER)
    answers = dict(zip(OF_TEXT, map(json.loads, done.stdout.splitlines()), strict=True))
    assert {
        name: (status, lines, imported)
        for name, (status, lines, imported) in answers.items()
        if (status, len(lines), imported) != (2, 1, []) or not wrong_inputs.is_told(ROWS[name], places, lines[0])
    } == {}
    assert list(tmp_path.iterdir()) == []


def test_wrong_inputs_are_refused_before_a_process_starts(places, tmp_path, monkeypatch, capsys):
    """In this process, because the imports take seconds."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "tools" / "train.py"))["main"]
    for name in OF_BUILD:
        assert main(wrong_inputs.command(ROWS[name], places)) == 2, name
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert wrong_inputs.is_told(ROWS[name], places, line), (name, line)
    assert list(tmp_path.iterdir()) == []


def test_what_the_text_tells_is_refused_before_anything_large_is_imported(tmp_path):
    for tool, words, message in TEXT_ALONE:
        status, lines, imported = run(tool, *words, cwd=tmp_path)
        assert (status, len(lines), imported) == (2, 1, []), (tool, words, lines, imported)
        assert lines[0].startswith("error: ") and message in lines[0], lines
    assert list(tmp_path.iterdir()) == []


MISSING = [
    ("convert_to_official.py", ["{leaf}", "a.pth", "out", "--set", "base=none"]),
    ("convert_to_official.py", ["--from", "none", "out"]),
    ("build_base_model.py", ["--vision", "none", "--llm", "none", "--out", "out"]),
    ("chat.py", ["none", "--question", "What?"]),
    ("evaluate.py", ["none", "--data", "none.jsonl", "--out", "out"]),
]


def test_what_is_missing_is_refused_with_pytorch_alone(tmp_path):
    for tool, words in MISSING:
        status, lines, imported = run(tool, *(word.format(leaf=LEAF) for word in words), cwd=tmp_path)
        assert (status, imported) == (2, ["torch"]), (tool, words, lines)
    status, lines, imported = run("check_data.py", "none.jsonl", cwd=tmp_path)
    assert (status, imported) == (2, ["torch"]), lines
    assert lines[0].startswith("error: none.jsonl:1: the annotation file can't be read (No such file"), lines
