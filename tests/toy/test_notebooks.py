"""Commands in a notebook: what is shown of their output, and how a failure shows."""

import pytest

from xtuner_plugins.toy.notebooks import excerpt, run

LOG = """\
11/22 21:05:52 - mmengine - INFO - Config:
base = 'somewhere'
11/22 21:05:52 - mmengine - WARNING - "FileClient" will be deprecated in future.
11/22 21:05:52 - mmengine - WARNING - a.jsonl:3: turns: strange
11/22 21:05:52 - mmengine - INFO - What this run trains:
  part                   trainable
  projector                 21,120
11/22 21:05:53 - mmengine - INFO - Iter(train) [ 10/60]  lr: 1e-3  eta: 0:00:16  time: 0.1  loss: 3.3594  tiles: 80.0
11/22 21:05:54 - mmengine - INFO - Iter(train) [ 50/60]  lr: 1e-3  eta: 0:00:14  time: 0.1  loss: 1.0688  tiles: 80.0
11/22 21:05:55 - mmengine - INFO - Iter(train) [ 60/60]  lr: 1e-3  eta: 0:00:13  time: 0.1  loss: 0.4357  tiles: 80.0
"""


def test_of_a_training_log_the_essence_is_shown():
    assert list(excerpt(LOG.splitlines(keepends=True))) == [
        "a.jsonl:3: turns: strange",
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
