"""The page's command: what is wrong is said in one line."""

import socket


def test_refusals(run_tool, toy_base):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, said in (
            (["none/here"], "none/here"),
            (["a", "--port", "0"], "give at least 1"),
            (["a", "--max-upload-mb", "0"], "give at least 1"),
            ([toy_base, "--port", port], f"{port}"),
        ):
            done = run_tool("tools/web_demo.py", *words)
            assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
