"""The page's command: what is wrong is said in one line."""

import runpy
import socket

from tests.conftest import ROOT

MAIN = runpy.run_path(str(ROOT / "tools/web_demo.py"))["main"]


def test_refusals(toy_base, tmp_path, capsys):
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in (
            (["none/here"], "none/here"),
            (["a", "--password-file", tmp_path / "empty"], "empty: its first line is empty; write the password there"),
            ([toy_base, "--port", port], f"{port}"),
        ):
            assert MAIN(list(map(str, words))) == 2
            err = capsys.readouterr().err
            assert said in err and err.startswith("error: ") and len(err.splitlines()) == 1, err
