"""Children end with their parent, however it ends."""

import os
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.process_table import ends
from xtuner_plugins.engine.run.runtime import adjust_stack
from xtuner_plugins.processes import ALLOCATOR, allocator_settings

SLEEPER = "import time; time.sleep(600)"
BY_POPEN = f"""
import sys, time
from xtuner_plugins.processes import start_bound
print(start_bound([sys.executable, "-c", {SLEEPER!r}]).pid, flush=True)
time.sleep(600)
"""
WORK = """
import os, time
from xtuner_plugins.processes import die_with_parent
die_with_parent(watch=WATCH)
print(os.getpid(), flush=True)
time.sleep(600)
"""
BY_MULTIPROCESSING = f"""
import multiprocessing, sys
method, watch = sys.argv[1:]
work = {WORK!r}.replace("WATCH", watch)
process = multiprocessing.get_context(method).Process(target=exec, args=(work,))
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


@pytest.mark.parametrize("code", [BY_POPEN, TOO_LATE], ids=["popen", "too_late"])
def test_child_of_a_killed_process_ends(code):
    require_child_ends(code)


@pytest.mark.parametrize("watch", ["True", "False"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_of_a_killed_process_ends(method, watch):
    """A fork server stands between its workers and the process that asked for them."""
    require_child_ends(BY_MULTIPROCESSING, method, watch)


def require_child_ends(*code):
    parent = subprocess.Popen([sys.executable, "-c", *code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert ends(child)
    parent.stdout.close()


def test_status_and_output_come_through():
    from xtuner_plugins.processes import start_bound

    done = start_bound([sys.executable, "-c", "print('out'); raise SystemExit(3)"], stdout=subprocess.PIPE, text=True)
    assert done.communicate(timeout=HANGS_AFTER)[0] == "out\n" and done.returncode == 3


def test_ancestors_are_known():
    from xtuner_plugins.processes import is_ancestor

    child = subprocess.Popen([sys.executable, "-c", SLEEPER])
    try:
        assert is_ancestor(os.getppid()) and not is_ancestor(child.pid)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("has_gpu, own, found", [(True, None, 1), (False, None, 0), *((True, n, 0) for n in ALLOCATOR)])
def test_segments_grow_on_a_gpu_unless_the_user_has_said_otherwise(has_gpu, own, found, monkeypatch):
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:128")
    wanted = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if found else {}
    assert allocator_settings(os.environ, has_gpu) == wanted
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    adjust_stack()  # of a process that XTuner's own command has started
    assert wanted.items() <= os.environ.items() and (found or own or ALLOCATOR[1] not in os.environ)
