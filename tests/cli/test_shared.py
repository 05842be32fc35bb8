"""What every tool shares."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_no_tool_loads_the_package_that_fetches_code(tmp_path):
    (tmp_path / "kernels.py").write_text("print('loaded')")
    code = "from xtuner_plugins.cli.shared import finish; finish(lambda: __import__('kernels'))"
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "loaded" not in done.stdout and "ModuleNotFoundError" in done.stderr
