"""Children end with their parent, however it ends."""

import io
import itertools
import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.process_table import ends
from xtuner_plugins import processes
from xtuner_plugins.processes import ALLOCATOR, allocator_settings, is_ancestor

SLEEPER = "import time; time.sleep(600)"
BY_POPEN = f"""
import sys
from xtuner_plugins.processes import start_bound
process = start_bound([sys.executable, "-c", {SLEEPER!r}])
print(process.pid, flush=True)
process.wait()
"""
WORK = f"""
import os
from xtuner_plugins.processes import die_with_parent
die_with_parent(watch=WATCH)
print(os.getpid(), flush=True)
{SLEEPER}
"""
# A fork server stands between its workers and the process that asked for them.
BY_MULTIPROCESSING = f"""
import multiprocessing, sys
method, watch = sys.argv[1:]
process = multiprocessing.get_context(method).Process(target=exec, args=({WORK!r}.replace("WATCH", watch),))
process.start()
process.join()
"""
# The child's parent has ended before the child asks: nothing would ever tell it.
TOO_LATE = """
import os, time
from xtuner_plugins.processes import die_with_parent
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    print(os.getpid(), flush=True)
    die_with_parent(parent)
    time.sleep(600)
"""


def test_children_of_a_killed_process_end():
    methods = itertools.product(("fork", "spawn", "forkserver"), ("True", "False"))
    for code in ((BY_POPEN,), (TOO_LATE,), *((BY_MULTIPROCESSING, *each) for each in methods)):
        parent = subprocess.Popen([sys.executable, "-c", *code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with parent.stdout as out:
            child = int(out.readline())
            assert is_ancestor(os.getppid()) and not is_ancestor(child)
            parent.kill()
            parent.wait()
            assert ends(child), code


def test_segments_grow_on_a_gpu_unless_the_user_has_said_otherwise():
    grow = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for said, has_gpu, added in (({}, True, grow), ({}, False, {}), *(({name: "x"}, True, {}) for name in ALLOCATOR)):
        assert allocator_settings(said, has_gpu) == added


def test_progress_in_a_log_is_whole_lines(monkeypatch):
    """A bar that only terminals see left an evaluation of an hour without a line."""
    log = io.StringIO()
    monkeypatch.setattr(processes, "LOG_SECONDS", 0)
    with processes.progress_bar(total=2, file=log) as bar:
        bar.update()
        bar.write("left out", log)
        bar.update()
    shown = [line.split(" [")[0].strip() for line in log.getvalue().splitlines()]
    assert shown == ["0% 0/2", "50% 1/2", "left out", "100% 2/2", "100% 2/2", ""]
