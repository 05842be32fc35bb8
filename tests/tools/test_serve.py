"""The server's command, as a process."""

import os
import re
import signal
import socket
import subprocess
import sys

import openai
import pytest

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.inference.session import ChatSession


def test_it_serves_until_it_is_interrupted(toy_base, tmp_path):
    (tmp_path / "keys").write_text("one\ntwo\n")
    command = [sys.executable, "tools/serve.py", toy_base, "--port", "0", "--device", "cpu", "--name", "toy"]
    server = subprocess.Popen(
        [*map(str, command), "--api-key-file", str(tmp_path / "keys")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        line = server.stdout.readline()
        address = re.fullmatch(r"toy answers at (http://127\.0\.0\.1:\d+/v1) \(Ctrl-C stops\)\n", line)
        assert address, line + server.stderr.read()
        client = openai.OpenAI(base_url=address[1], api_key="two", max_retries=5)
        messages = [{"role": "user", "content": "Hello"}]
        found = client.chat.completions.create(model="toy", messages=messages, max_tokens=8).choices[0].message.content
        assert found == ChatSession.from_pretrained(toy_base, device="cpu").ask("Hello", max_new_tokens=8)
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=HANGS_AFTER)
        assert (server.returncode, out, err) == (0, "", "")
    finally:
        server.kill()
        server.wait()


def test_a_taken_port_and_a_file_without_keys(run_tool, toy_base, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = run_tool("tools/serve.py", toy_base, "--port", other.getsockname()[1])
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: can't listen on 127.0.0.1:") and "choose another port or host" in done.stderr
    (tmp_path / "keys").write_text("\n")
    done = run_tool("tools/serve.py", toy_base, "--api-key-file", tmp_path / "keys")
    assert done.returncode == 1 and "keys holds no key; write one per line" in done.stderr


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--max-queue", 0, "0: give at least 1"),
        ("--max-tiles", 0, "0: give"),
        ("--port", 99999, "99999: give 0 to 65535"),
    ],
)
def test_wrong_command_lines(run_tool, option, value, message):
    done = run_tool("tools/serve.py", "none", option, value)
    assert done.returncode == 2 and message in done.stderr
