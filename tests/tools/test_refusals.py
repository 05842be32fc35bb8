"""A tool says at once how it is used and what is wrong: nothing large is imported for that."""

import json
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.golden import wrong_inputs

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
# Calls tools with words in turn, in one process, because each start takes a second; prints status, stderr and the
# large libraries that were imported until then.
IN_TURN = f"""
import contextlib, io, json, runpy, sys
large = "deepspeed", "peft", "torch", "torchvision", "transformers", "xtuner"
for tool, words in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            sys.argv = [tool, *words]
            status = runpy.run_path({str(ROOT)!r} + "/tools/" + tool)["main"](words)
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, said.getvalue().splitlines(), [name for name in large if name in sys.modules]]))
"""


def in_turn(calls, cwd):
    """A list (exit status, lines of stderr, large libraries imported so far) of calls (tool, words)."""
    command, known = [sys.executable, "-c", IN_TURN], {"cwd": cwd, "input": json.dumps(calls)}
    done = subprocess.run(command, **known, capture_output=True, text=True, timeout=HANGS_AFTER)
    return list(map(json.loads, done.stdout.splitlines()))


@pytest.fixture(scope="module")
def places(toy_base, tmp_path_factory):
    """What stands in braces in the table of wrong inputs."""
    return wrong_inputs.places(tmp_path_factory.mktemp("places"), toy_base)


LEAF = "toy_finetune_lora"
TEXT_ALONE = [
    ("check_data.py", LEAF, "'work_dirs/quickstart/pretrain_mlp': no such directory; make it: make q"),
    ("check_data.py", f"{LEAF} --set max_tile=3", "did you mean max_tiles"),
    ("convert_to_official.py", "no_such a b", "config no_such does not exist"),
    ("configs.py", "no_such", "config no_such does not exist"),
    ("configs.py", f"{LEAF} --set lr=abc", "lr='abc': build_adamw takes float"),
    ("configs.py", "--family no_such", "families: "),
    ("configs.py", "no_such --write out.py --base b --data d --images i", "config no_such does not"),
]
MISSING = [
    ("convert_to_official.py", f"{LEAF} a.pth out --set base=none"),
    ("convert_to_official.py", "--from none out"),
    ("build_base_model.py", "--vision none --llm none --out out"),
    ("chat.py", "none --question What?"),
    ("evaluate.py", "none --data none.jsonl --out out"),
    ("check_data.py", "none.jsonl"),
]


def test_what_the_text_tells_is_refused_before_anything_large_is_imported(places, tmp_path):
    rows = [row for row in wrong_inputs.rows() if row["seen"] == "text"]
    calls = [(tool, ["--help"]) for tool in TOOLS]
    calls += [(tool, words.split()) for tool, words, _ in TEXT_ALONE]
    calls += [("train.py", wrong_inputs.command(row, places)) for row in rows]
    told = [*({"says": message} for *_, message in TEXT_ALONE), *rows]
    helps, found = len(TOOLS), in_turn(calls, tmp_path)
    assert found[:helps] == [[0, [], []]] * helps
    for call, row, (status, lines, imported) in zip(calls[helps:], told, found[helps:], strict=True):
        assert (status, len(lines), imported) == (2, 1, []), (call, lines)
        assert wrong_inputs.is_told(row, places, lines[0]), (call, lines)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_refused_with_pytorch_alone(tmp_path):
    calls = [(tool, words.split()) for tool, words in MISSING]
    for call, (status, lines, imported) in zip(calls, in_turn(calls, tmp_path), strict=True):
        assert (status, imported) == (2, ["torch"]), (call, lines)
    assert lines[0].startswith("error: none.jsonl:1: the annotation file can't be read (No such file"), lines
    assert lines[0].endswith("); correct the path, or the file's mode"), lines


UNWRITABLE = [
    ("configs", f"{LEAF} --write {{file}}/w.py --base b --data d --images i", "{file}: "),
    ("prepare_data", "textocr-gpt4o {source} {folder}", "{folder}: Is a directory"),
    ("prepare_data", "textocr-gpt4o {source} {file}/out.jsonl", "{file}: "),
    ("prepare_data", "textocr-gpt4o {source} /sys/none.jsonl", "/sys/none.jsonl: "),  # nobody makes a file there
    ("web_demo", "{base} --password-file {folder}/none", "{folder}/none: No such file"),
    ("evaluate", "{base} --data text --out {file}", "{file}: File exists"),
]


def test_a_path_that_cannot_be_used_is_named_with_a_remedy(places, tmp_path, tool):
    here = {"base": places["base"], "file": tmp_path / "file", "folder": tmp_path, "source": tmp_path / "a.jsonl"}
    here["file"].touch()
    here["source"].write_text('{"filename": "a.jpg", "caption": "A sign."}\n')
    for name, words, says in UNWRITABLE:
        status, _, errors = tool(name, *words.format(**here).split())
        (line,) = [line for line in errors.splitlines() if not line.startswith("warning: ")]
        assert status == 2 and line.startswith(f"error: {says.format(**here)}"), (name, words, errors)
        assert line.endswith("; name another path, or give permission there"), (name, words, errors)
    assert sorted(tmp_path.iterdir()) == [here["source"], here["file"]]
