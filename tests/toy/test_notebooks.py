"""Commands in a notebook: what is shown of their output, and how a failure shows."""

import pytest

from xtuner_plugins.toy.notebooks import run

SCRIPT = """
import os, sys
print(f"wrote {sys.argv[1]} {os.environ['NO_COLOR']}")
for step in (10, 50, 60):
    print(f"step {step}/60  eta 0:00:16  loss {step}.5  grad norm 1.2  lr 1.00e-03  4,000 tokens/s")
print("error: why", file=sys.stderr)
sys.exit(len(sys.argv) - 2)
"""


def test_a_command_is_shown_with_the_essence_of_its_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / "a.py").write_text(SCRIPT)
    run("a.py", tmp_path / "out")
    shown = ["wrote out 1", "step 50/60  loss 50.5", "step 60/60  loss 60.5"]
    assert capsys.readouterr().out.splitlines() == ["$ python a.py out", *shown]
    with pytest.raises(RuntimeError, match="(?s)exit status 1\nwrote out 1\n.*\nerror: why"):
        run("a.py", "out", "more")
