"""The page's command: what is wrong is said in one line, before a model is loaded."""

import socket

import pytest


@pytest.mark.parametrize(
    "words, said",
    [
        (["none/here"], "none/here"),
        (["a", "--port", "0"], "give at least 1"),
        (["a", "--port", "x"], "invalid int value"),
        (["a", "--max-upload-mb", "0"], "give at least 1"),
    ],
)
def test_refusals(run_tool, words, said):
    done = run_tool("tools/web_demo.py", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_port_in_use(run_tool, toy_base):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_tool("tools/web_demo.py", toy_base, "--port", port)
    assert done.returncode == 2 and f"port {port}" in done.stderr and "Traceback" not in done.stderr, done.stderr
