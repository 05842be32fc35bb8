"""The page's command: what is wrong is said in one line."""

import socket


def test_refusals(toy_base, tmp_path, tool):
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in (
            (["none/here"], "none/here"),
            (["a", "--password-file", tmp_path / "empty"], "empty: its first line is empty; write the password there"),
            ([toy_base, "--port", port], f"{port}"),
        ):
            status, _, err = tool("web_demo", *words)
            assert status == 2 and said in err and err.startswith("error: ") and len(err.splitlines()) == 1, err
