"""Commands in a notebook: what is shown of their output, and how a failure shows."""

import pytest

from xtuner_plugins.toy.notebooks import excerpt, run

LOG = """\
warning: a.jsonl:3: turns: strange
What this run trains:
  part                   trainable
  projector                 21,120
step 10/60  eta 0:00:16  loss 3.3594  grad norm 1.2  lr 1.00e-03  4,000 tokens/s
step 50/60  eta 0:00:14  loss 1.0688  grad norm 1.2  lr 1.00e-03  4,000 tokens/s
step 60/60  eta 0:00:00  loss 0.4357  grad norm 1.2  lr 1.00e-03  4,000 tokens/s
"""


def test_of_a_training_log_the_essence_is_shown():
    assert list(filter(None, map(excerpt, LOG.splitlines()))) == [
        "warning: a.jsonl:3: turns: strange",
        "What this run trains:",
        "  part                   trainable",
        "  projector                 21,120",
        "step 50/60  loss 1.0688",
        "step 60/60  loss 0.4357",
    ]


def test_a_command_is_shown_with_its_output_and_relative_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / "a.py").write_text("import os, sys; print('wrote', sys.argv[1]); print(os.environ['NO_COLOR'])")
    run("a.py", tmp_path / "out")
    assert capsys.readouterr().out == "$ python a.py out\nwrote out\n1\n"


def test_a_failure_raises_with_its_last_words(tmp_path, capsys):
    script = tmp_path / "a.py"
    script.write_text("import sys; print('so far'); print('error: why', file=sys.stderr); sys.exit(3)")
    with pytest.raises(RuntimeError, match="exit status 3\nso far\nerror: why"):
        run(script)
    assert "so far" in capsys.readouterr().out
