"""Child processes that end with their parent, even when the parent is killed.

A killed process (SIGKILL, or out of memory) can't end its children: they would go on and hold memory, locks and ports.
So each child asks the kernel to kill it when its parent ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TextIO

from tqdm import tqdm

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 1.0
LOG_SECONDS = 30.0  # between lines of progress in a log
STARTED_BY = "XTUNER_PLUGINS_STARTED_BY"  # process id of the caller of `start_bound`
ENDED_BY = "XTUNER_PLUGINS_ENDED_BY"  # number of the signal that a child gets when its parent ends, if not SIGKILL

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the newer name, and the older one
# What a process gets that is to finish its work when its parent ends.
PARENT_ENDED = signal.SIGRTMIN + 12
STOP_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, PARENT_ENDED)


def die_with_parent(parent: int | None = None, *, watch: bool = False) -> None:
    """Makes this process end (SIGKILL, or the signal in ``ENDED_BY``) as soon as its parent ends. Call it first.

    If the parent, or the ancestor that called `start_bound`, has already ended, this process ends at once. Linux ties a
    child to its parent's *thread*: start it from one that outlives it, usually the main one, or pass ``watch=True``.

    Args:
        parent: Process id of the parent. None takes the parent that `multiprocessing` knows, else the current one.
        watch: Instead of the kernel, a thread of this process checks every second whether the parent is alive.
    """
    above, started_by = os.getppid(), multiprocessing.parent_process()
    if parent is None:
        parent = started_by.pid if started_by else above
    if watch or (started_by is not None and parent == started_by.pid != above):  # or a fork server stands between
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="die-with-parent").start()
    else:
        _set_death_signal(ctypes.CDLL(None, use_errno=True))
    starter = os.environ.get(STARTED_BY)
    if os.getppid() != above or not is_ancestor(parent) or (starter and not is_ancestor(int(starter))):
        os.kill(os.getpid(), signal.SIGKILL)


def start_bound(command: Sequence[str], **options) -> subprocess.Popen:
    """As `subprocess.Popen`, for a program that ends with the calling thread.

    Processes started by that program end with it if they call `die_with_parent`.
    """
    options["env"] = {**(options.get("env") or os.environ), STARTED_BY: str(os.getpid())}
    parent, libc = os.getpid(), ctypes.CDLL(None, use_errno=True)

    def bind() -> None:
        _set_death_signal(libc)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return subprocess.Popen(command, preexec_fn=bind, **options)


def leave_signals_to_parent() -> None:
    """Makes this process ignore requests to stop, which a terminal or Slurm sends to its parent, too."""
    signal.set_wakeup_fd(-1)
    for number in STOP_REQUESTS:
        signal.signal(number, signal.SIG_IGN)


def is_ancestor(pid: int) -> bool:
    """Whether ``pid`` is a living ancestor of this process."""
    current: int | None = os.getppid()
    while current and current != pid:
        current = parent_of(current)
    return current == pid


def parent_of(pid: int) -> int | None:
    """The parent of a process; None if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def program_of(pid: int | None) -> str:
    """The name of the program or Python script that a process runs; '' if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.path.basename(word) for word in os.fsdecode(file.read()).split("\0")]
    except OSError:
        return ""
    return words[1] if words[0].startswith("python") and len(words) > 1 else words[0]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_workers(work: Callable, items: Sequence, num_workers: int | None = None) -> Iterator:
    """``work(item)`` of each item, in order, in processes that end with this one and leave Ctrl-C to it.

    Args:
        num_workers: Processes (default: one per core); fewer than two do the work in this process.
    """
    num_workers = min(num_cores() if num_workers is None else num_workers, len(items))
    if num_workers < 2:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(work,)) as pool:
        yield from pool.map(_do, items)


_work: Callable | None = None  # of a worker process: it may hold a large index, which isn't sent with each item


def _start_worker(work: Callable) -> None:
    global _work
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # looking through all of the parent's objects again and again took a third of the time
    _work = work


def _do(item: object) -> object:
    return _work(item)


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def allocator_settings(env: Mapping[str, str], has_gpu: bool) -> dict[str, str]:
    """What a training process needs in its environment besides ``env``; nothing where the user has set a variable.

    Lengths differ from batch to batch. Segments of PyTorch's allocator that grow leave fewer holes that no later tensor
    fits; it reads this when the first tensor is made on a GPU.
    """
    if not has_gpu or any(name in env for name in ALLOCATOR):
        return {}
    return {ALLOCATOR[1]: "expandable_segments:True"}


def _set_death_signal(libc: ctypes.CDLL) -> None:
    number = int(os.environ.get(ENDED_BY, signal.SIGKILL))
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _watch(ancestor: int) -> None:
    while is_ancestor(ancestor):
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def progress_bar(**options: Any) -> tqdm:
    """A bar on a terminal; in a log file a line at the beginning, one every `LOG_SECONDS`, and one at the end.

    Args:
        options: Of tqdm.
    """
    file = options.setdefault("file", sys.stderr)
    if file.isatty():
        return tqdm(**options)
    return _Lines(mininterval=LOG_SECONDS, miniters=1, ncols=0, **options)


class _Lines(tqdm):
    """Prints lines, so what `write` prints between them needs none of them cleared and drawn again."""

    external_write_mode = classmethod(lambda cls, **options: contextlib.nullcontext())

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        return lambda text: print(text, file=file, flush=True)


def quiet_imports() -> None:
    """Keeps bitsandbytes, DeepSpeed and tqdm from reporting on import. Call it first in a ``main`` or a notebook.

    bitsandbytes warns about a kernel that isn't used here; it would load it from the hub where the package ``kernels``
    is installed, so that package is hidden. DeepSpeed, which MMEngine's runner imports, warns on a machine without GPU
    that it found none; it is told so in advance. In a notebook tqdm warns that it has no widgets and draws its bars as
    text.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")
    sys.modules.setdefault("kernels", None)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
