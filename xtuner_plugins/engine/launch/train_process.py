"""One training process: ``python -m xtuner_plugins.engine.launch.train_process CONFIG ...``.

It quiets libraries before anything large is imported. Errors that a user can fix end in one line and status 1, or 2
where they are of the command, as the launcher has it; all others keep their traceback.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import traceback

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
# PyTorch turns an error in a loading process into a RuntimeError that ends with the original class and message.
WORKER_ERROR = re.compile(r"^Caught \w+ in DataLoader worker.*\nxtuner_plugins[\w.]+: (?P<message>.*)$", re.DOTALL)


def main() -> int:
    """Runs XTuner's training on ``sys.argv``; returns the exit status, or ends the process with that of an error.

    The process ends with its parent.
    """
    from ...processes import die_with_parent, quiet_imports

    die_with_parent()
    quiet_imports()
    from xtuner.tools import train as xtuner_train

    from ..run.runtime import leave_process_group
    from ..watch.stopping import exit_status

    try:
        xtuner_train.main()
        leave_process_group()
    except SystemExit:
        raise
    except BaseException as error:
        status = _tell(error)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # gloo would abort while the error's frames are freed, where another rank is gone
    return exit_status()


def _tell(error: BaseException) -> int:
    """Says what ended the run, on the terminal and in the log file; returns the status."""
    from ...settings import ConfigError
    from ...weights.errors import CheckpointError
    from ..watch.console import record

    if isinstance(error, KeyboardInterrupt):
        print("interrupted outside of training: nothing to save", file=sys.stderr)
        return 128 + signal.SIGINT
    message = user_message(error)
    record(traceback.format_exc() if message is None else f"error: {message}")
    if message is None or os.environ.get("XTUNER_PLUGINS_TRACEBACK") == "1":
        traceback.print_exc()
        return 1
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not getattr(error, "on_every_rank", False):
        print(f"error (rank {rank}): {message} (XTUNER_PLUGINS_TRACEBACK=1 shows the traceback)", file=sys.stderr)
    return 2 if isinstance(error, (ConfigError, CheckpointError)) else 1


def user_message(error: BaseException) -> str | None:
    """The message of an error that a user can fix, or that comes from another process; None for any other error."""
    if isinstance(error, USER_ERRORS):
        return str(error)
    in_worker = WORKER_ERROR.match(str(error))
    if in_worker:
        return in_worker["message"].strip()
    from ..watch.errors import lost_process

    return lost_process(error)


if __name__ == "__main__":
    sys.exit(main())
