"""The chat tool as a user runs it: a process, its output, its status."""

import os
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.inference.chat import COMMANDS, printable
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import ChatSession, Turn

TOOL = ROOT / "tools/chat.py"
SHORT = ("--device", "cpu", "--max-new-tokens", "8")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture()
def image(tmp_path):
    path = tmp_path / "a b.png"
    Image.effect_noise((336, 224), 80).convert("RGB").save(path)
    return path


def test_a_conversation_by_stdin(toy_base, image, tool):
    lines = ["Hello", f"/image {image}", "What is it?", "/image missing.png", "/unknown", "And why?"]
    typed = "\n".join([*lines, "/clear", "Hello", "/quit", "Never asked"])
    options = {"input": typed, "text": True, "encoding": "utf-8", "capture_output": True, "timeout": HANGS_AFTER}
    done = subprocess.run([sys.executable, TOOL, toy_base, *SHORT], env=ENV, **options)
    session, turns = open_session(toy_base, device="cpu"), []
    for turn in (Turn("Hello"), Turn("What is it?", [image]), Turn("And why?")):
        answer = printable("".join(session.reply([*turns, turn], max_new_tokens=8)).strip())
        turns.append(replace(turn, answer=answer))
    hello, what, why = (turn.answer for turn in turns)
    shown = f"({image}, 336 x 224, goes with the next question)"
    expected = f"{hello} {shown} {what} {why} (a new conversation) {hello}"
    assert " ".join(done.stdout.split()) == " ".join(expected.split())
    errors = done.stderr.splitlines()
    assert len(errors) == 2 and "missing.png" in errors[0] and "no command /unknown; there are /image" in errors[1]
    assert done.returncode == 1  # something on the way went wrong
    status, said, _ = tool("chat", toy_base, "--question", "Hello", *SHORT)
    assert (status, said.strip()) == (0, hello)


def test_an_error_is_one_clear_line(toy_base, tmp_path, monkeypatch, tool):
    explode = mock.Mock(side_effect=RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    for words, said in (
        ((toy_base, "--image", tmp_path / "broken.png"), "broken.png"),
        ((toy_base, "--question", "What is <image>?"), "1 <image> for 0 images"),
        ((toy_base,), "error: out of memory; try a smaller --max-tiles"),
    ):
        if "memory" in said:
            monkeypatch.setattr(ChatSession, "reply", explode)
        status, out, err = tool("chat", "--question", "Hi", "--device", "cpu", *words)
        assert (status, out) == (2, "") and err.startswith("error: ") and len(err.splitlines()) == 1 and said in err
    assert [command for command in COMMANDS if command not in TOOL.read_text()] == []
