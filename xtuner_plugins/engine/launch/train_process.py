"""One training process: ``python -m xtuner_plugins.engine.launch.train_process CONFIG ...``.

It quiets libraries before anything large is imported. Errors that a user can fix end in one line and status 1, or 2
where they are of the command, as the launcher has it; all others keep their traceback.
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

    from ...settings import ConfigError
    from ...weights.errors import CheckpointError
    from ..run.runtime import leave_process_group
    from ..watch.console import record
    from ..watch.stopping import exit_status

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
        if rank == "0" or not getattr(error, "on_every_rank", False):
            hint = "(XTUNER_PLUGINS_TRACEBACK=1 shows the traceback)"
            print(f"error (rank {rank}): {message}", hint, file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, CheckpointError)) else 1
    except Exception:
        record(traceback.format_exc())
        raise
    return exit_status()


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
