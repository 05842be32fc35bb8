"""The chat tool as a user runs it: a process, its output, its status."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pexpect
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER
from xtuner_plugins.inference.chat import COMMANDS, printable
from xtuner_plugins.inference.session import ChatSession, Turn

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("chat_tool", ROOT / "tools/chat.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
SHORT = ("--device", "cpu", "--max-new-tokens", "8")


def chat(*args, stdin=""):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/chat.py"), *map(str, args)],
        cwd=ROOT,
        input=stdin,
        text=True,
        encoding="utf-8",
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        timeout=HANGS_AFTER,
    )


@pytest.fixture()
def image(tmp_path):
    path = tmp_path / "a b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 336, 3), dtype=np.uint8)).save(path)
    return path


def answer(session, *turns):
    return printable("".join(session.reply(turns, max_new_tokens=8)).strip())


def test_one_question(toy_base, image):
    done = chat(toy_base, "--image", image, "--question", "What is it?", *SHORT)
    assert done.returncode == 0, done.stderr
    expected = answer(ChatSession.from_pretrained(toy_base, device="cpu"), Turn("What is it?", [image]))
    assert done.stdout.strip() == expected and "warn" not in done.stderr.lower()


def test_a_conversation_by_stdin(toy_base, image):
    lines = [
        "Hello",
        f"/image {image}",
        "What is it?",
        "/image missing.png",
        "/unknown",
        "And why?",
        "/clear",
        "Hello",
        "/quit",
        "Never asked",
    ]
    done = chat(toy_base, *SHORT, stdin="\n".join(lines) + "\n")
    session = ChatSession.from_pretrained(toy_base, device="cpu")
    turns = []
    for turn in (Turn("Hello"), Turn("What is it?", [image]), Turn("And why?")):
        turns.append(replace(turn, answer=answer(session, *turns, turn)))
    hello, what, why = (turn.answer for turn in turns)
    shown = f"({image}, 336 x 224, goes with the next question)"
    assert " ".join(done.stdout.split()) == " ".join(
        f"{hello} {shown} {what} {why} (a new conversation) {hello}".split()
    )
    errors = done.stderr.splitlines()
    assert len(errors) == 2 and "missing.png" in errors[0] and "no command /unknown; there are /image" in errors[1]
    assert done.returncode == 1  # something on the way went wrong


@pytest.mark.slow
def test_in_a_terminal(toy_base, image, tmp_path):
    """Arrow keys recall lines."""
    command = [str(ROOT / "tools/chat.py"), str(toy_base), "--device", "cpu", "--max-new-tokens", "8"]
    env = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    options = {"env": env, "cwd": tmp_path, "encoding": "utf-8", "timeout": HANGS_AFTER, "dimensions": (40, 100)}
    with pexpect.spawn(sys.executable, command, **options) as child:
        child.expect("Ask, or type .*> ")
        child.sendline("What is it?")
        child.expect_exact("What is it?\r\n")
        child.expect("> ")
        child.send("\x1b[A\r")  # the question again
        child.expect_exact("What is it?")
        child.expect("> ")
        child.sendline("/quit")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0


def test_an_error_is_one_clear_line(toy_base, tmp_path, capsys):
    """In this process: a fresh one takes seconds to start."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    for args, said in (
        ((tmp_path / "missing",), "missing does not exist"),
        ((toy_base, "--image", tmp_path / "broken.png"), "broken.png"),
        ((toy_base, "--dtype", "int4"), "dtype='int4' is unknown; it is one of"),
        ((toy_base, "--device", "cpu", "--question", "What is <image>?"), "1 <image> for 0 images"),
    ):
        assert tool.main([*map(str, args), *([] if "--question" in args else ["--question", "Hi"])]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and len(err.splitlines()) == 1 and said in err


def test_wrong_command_lines(capsys):
    for args, said in (
        (("--max-new-tokens", "0"), "--max-new-tokens: 0: give at least 1"),
        (("--temperature", "-1"), "--temperature: -1: give at least 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            tool.parse_args(["model", *args])
        assert said in capsys.readouterr().err
    assert [command for command in COMMANDS if command not in tool.__doc__] == []


def test_running_out_of_memory_is_one_clear_line(toy_base, monkeypatch, capsys):
    def explode(*args, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ChatSession, "reply", explode)
    assert tool.main([str(toy_base), "--question", "Hi", *SHORT]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory; try a smaller --max-tiles")
