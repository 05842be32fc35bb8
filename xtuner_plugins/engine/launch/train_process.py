"""One training process: ``python -m xtuner_plugins.engine.launch.train_process CONFIG ...``.

It quiets libraries before anything large is imported. Errors that a user can
fix end in one line and status 1; all others keep their traceback.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
# PyTorch turns an error in a loading process into a RuntimeError that ends with the original class and message.
WORKER_ERROR = re.compile(r"^Caught \w+ in DataLoader worker.*\nxtuner_plugins[\w.]+: (?P<message>.*)$", re.DOTALL)


def main() -> int:
    """Runs XTuner's training on ``sys.argv``; returns the exit status. The process ends with its parent."""
    from ...processes import die_with_parent, quiet_imports

    die_with_parent()
    quiet_imports()
    from xtuner.tools import train as xtuner_train

    from ..run.runtime import leave_process_group
    from ..watch.console import record
    from ..watch.stopping import exit_status

    sys.argv = name_newest(sys.argv)
    try:
        xtuner_train.main()
        leave_process_group()
    except KeyboardInterrupt:
        print("interrupted outside of training: nothing to save", file=sys.stderr)
        return 128 + signal.SIGINT
    except (*USER_ERRORS, RuntimeError) as error:
        message = user_message(error)
        record(traceback.format_exc() if message is None else f"error: {message}")
        if message is None or os.environ.get("XTUNER_PLUGINS_TRACEBACK") == "1":
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0" and getattr(error, "on_every_rank", False):
            return 1
        print(f"error (rank {rank}): {message}", "(XTUNER_PLUGINS_TRACEBACK=1 shows the traceback)", file=sys.stderr)
        return 1
    except Exception:
        record(traceback.format_exc())
        raise
    return exit_status()


def name_newest(argv: list[str]) -> list[str]:
    """Replaces ``--resume`` without a value by ``--resume=auto``, because XTuner's parser requires a value."""
    pairs = zip(argv, [*argv[1:], "--"], strict=True)
    return ["--resume=auto" if word == "--resume" and after.startswith("--") else word for word, after in pairs]


def user_message(error: Exception) -> str | None:
    """The message of an error that a user can fix, or that comes from another process; None for any other error."""
    if isinstance(error, USER_ERRORS):
        return str(error)
    in_worker = WORKER_ERROR.match(str(error))
    if in_worker:
        return in_worker["message"].strip()
    from ..watch.errors import lost_process

    return lost_process(error)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)
