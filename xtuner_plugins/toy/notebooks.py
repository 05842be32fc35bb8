"""Commands of this project in a notebook: what a terminal would show, with fewer steps of a training."""

import os
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path

from xtuner_plugins.engine.watch.console import STEP_LINE
from xtuner_plugins.processes import start_bound
from xtuner_plugins.toy.quickstart import progress_line


def run(*command: str | Path) -> None:
    """Runs a Python command with the notebook's own interpreter; prints it and its output while it comes.

    Paths below the working directory are shown relative to it.

    Args:
        *command: Script and arguments, such as `"tools/train.py", config`.

    Raises:
        RuntimeError: It failed; the message has its last lines.
    """
    parts, here = [str(part) for part in command], f"{Path.cwd()}/"
    print("$", " ".join(["python", *parts]).replace(here, ""))
    # IPython asks its children for colors, which would hide log lines.
    options = {"env": {**os.environ, "NO_COLOR": "1"}, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    last: deque[str] = deque(maxlen=25)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = start_bound([sys.executable, "-u", *parts], stderr=errors, **options)
        for line in process.stdout:
            last.append(line.rstrip("\n"))
            # Of a training's steps every 50th and the last.
            if shown := progress_line(last[-1]) if STEP_LINE.search(last[-1]) else last[-1]:
                print(shown.replace(here, ""))
        if process.wait():
            errors.seek(0)
            last.extend(line.rstrip() for line in errors if line.strip())
            raise RuntimeError("\n".join([f"exit status {process.returncode}", *last]))
