"""One training process: ``python -m xtuner_plugins.engine.train_process CONFIG ...`` is ``xtuner train`` inside.

Errors that a user can mend end in one line and status 1; everything else keeps its traceback.
"""

from __future__ import annotations

import os
import sys

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def main() -> int:
    """Runs XTuner's training on ``sys.argv``; returns the exit status."""
    from xtuner.tools.train import main as xtuner_train

    try:
        xtuner_train()
    except USER_ERRORS as error:
        if os.environ.get("XTUNER_PLUGINS_TRACEBACK") == "1":
            raise
        rank = os.environ.get("RANK", "0")
        print(
            f"error (rank {rank}): {error}\n(set XTUNER_PLUGINS_TRACEBACK=1 for the traceback)",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)
