"""Recognizes the errors of a rank whose peer or whose loading worker is gone, and says so in one line."""

from __future__ import annotations

import re

import torch.distributed as dist

from .stopping import command_to_go_on

# gloo raises plain RuntimeErrors: "[.../gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:2788: Connection reset"
_GLOO = re.compile(r"gloo/\S*\] (?P<reason>.*)", re.DOTALL)
_WORKER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (?P<how>[^.\n]*)")
_BACKEND_ERRORS = tuple(
    kind for name in ("DistBackendError", "DistNetworkError", "DistStoreError") if (kind := getattr(dist, name, None))
)


def lost_rank_message(error: BaseException) -> str | None:
    """One line for an error of communication between ranks: what happened, where its cause is written, how to go on.

    Returns:
        The message; None for any other error.
    """
    found = _GLOO.search(str(error))
    if not found and not isinstance(error, _BACKEND_ERRORS):
        return None
    reason = " ".join((found["reason"] if found else str(error)).split())[:200]
    return (
        f"another process of this run has ended or can't be reached ({reason}). Its own output, here or on its node, "
        f"says why. The last checkpoint is as it was; start every node again with --resume, this one with: "
        f"{command_to_go_on()}"
    )


def lost_worker_message(error: BaseException) -> str | None:
    """One line for a loading worker that ended, usually because the system was short of memory.

    Returns:
        The message; None for any other error.
    """
    found = _WORKER.match(str(error))
    if not found:
        return None
    return (
        f"a process that loads data {found['how'].strip()}: usually the machine's memory or /dev/shm was full. Lower "
        "num_workers, or leave the process more memory. The last checkpoint is as it was; go on with: "
        f"{command_to_go_on()}"
    )
