"""The page's command: what is wrong is said in one line."""

import socket


def test_refusals(toy_base, tmp_path, tool):
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in (
            (["none/here"], "none/here"),
            (["a", "--password-file", tmp_path / "empty"], "empty: its first line is empty; write the password there"),
            ([toy_base, "--port", port], f"port {port} is in use; give another --port"),
            ([toy_base, "--host", "192.0.2.1", "--password-file", __file__], "--host 192.0.2.1: Cannot assign"),
        ):
            status, _, err = tool("web_demo", *words)
            assert status == 2 and said in err and err.startswith("error: ") and len(err.splitlines()) == 1, err
    for port in "0", "65536":
        status, _, err = tool("web_demo", "a", "--port", port)
        assert status == 2 and err.endswith(f"argument --port: {port}: give 1 to 65535\n")
