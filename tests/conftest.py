"""Fixtures that every room uses: tiny parts and a tiny base, made once a session, nothing downloaded."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# MMEngine needs yapf, which writes its grammar to the user's cache when it is first imported, not atomically: on a new
# machine one pytest worker read what the other had half written. This import is done before the workers start.
import yapf  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; tests send it to what they start
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# Seconds after which a process is taken to hang. Only a guard: on a machine with five times the load that it has cores
# for, a command of ten seconds took four minutes.
HANGS_AFTER = 600
XTP = "import sys; from xtuner_plugins.cli.xtp import main; sys.exit(main())"


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    """Several test processes share the cores."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Indices and lengths of data aren't kept in the working directory."""
    os.environ["XTUNER_PLUGINS_CACHE"] = str(tmp_path_factory.getbasetemp() / "data_index")


@pytest.fixture(scope="session")
def toy_parts(tmp_path_factory):
    """(vision directory, llm directory) with tiny random weights in the layouts of the real releases."""
    from xtuner_plugins.toy.models import write_random_parts

    return write_random_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def toy_base(toy_parts, tmp_path_factory):
    """An official base directory assembled from `toy_parts`, in float32."""
    from xtuner_plugins.export.base.build import build_base

    vision, llm = toy_parts
    out = tmp_path_factory.mktemp("base") / "base"
    build_base(vision, llm, out, dtype="float32")
    return out


@pytest.fixture(scope="session")
def run_tool():
    """Runs a command line tool of the repository as a user would; returns the finished process."""

    def run(*args, cwd=ROOT, timeout=HANGS_AFTER, env=None, input=None) -> subprocess.CompletedProcess:
        options = {"env": {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, "timeout": timeout, "input": input}
        return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, **options)

    return run


@pytest.fixture
def tool(capsys):
    """tool(name, *words) -> (status, stdout, stderr) of a tool in this process; another takes seconds to start."""

    def call(name, *words):
        try:
            status = runpy.run_path(str(ROOT / f"tools/{name}.py"))["main"](list(map(str, words)))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
