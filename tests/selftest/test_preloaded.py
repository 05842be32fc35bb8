"""The server that forks training processes imports all of this once, and says nothing meanwhile."""

from tests.conftest import ROOT


def test_importing_is_quiet(run_tool):
    lines = "import sys, xtuner_plugins.selftest.preloaded; sys.exit('xtuner.tools.train' not in sys.modules)"
    done = run_tool("-c", lines, cwd=ROOT)
    assert done.returncode == 0 and done.stdout + done.stderr == ""
