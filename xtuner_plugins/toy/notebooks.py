"""Commands of this project in a notebook: what a terminal would show, with fewer steps of a training."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from xtuner_plugins.engine.watch.console import STEP_LINE
from xtuner_plugins.processes import start_bound
from xtuner_plugins.toy.quickstart import progress_line

LAST_LINES = 25


def run(*command: str | Path) -> None:
    """Runs a Python command with the notebook's own interpreter; prints it and its output while it comes.

    Paths below the working directory are shown relative to it.

    Args:
        *command: Script and arguments, such as `"tools/train.py", config`.

    Raises:
        RuntimeError: It failed; the message has its last lines.
    """
    parts = [str(part) for part in command]
    here = f"{Path.cwd()}/"
    print("$", " ".join(["python", *parts]).replace(here, ""))
    seen: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = start_bound(
            [sys.executable, "-u", *parts],
            env={**os.environ, "NO_COLOR": "1"},  # IPython asks its children for colors, which would hide log lines
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        )

        def lines() -> Iterator[str]:
            for line in process.stdout:
                seen.append(line)
                yield line

        for line in excerpt(lines()):
            print(line.replace(here, ""))
        if process.wait():
            errors.seek(0)
            last = [line.rstrip() for line in [*seen, *errors] if line.strip()][-LAST_LINES:]
            raise RuntimeError("\n".join([f"exit status {process.returncode}", *last]))


def excerpt(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a tool's output; of a training's steps every 50th and the last."""
    for line in lines:
        if STEP_LINE.search(line) is None:
            yield line.rstrip("\n")
        elif step := progress_line(line):
            yield step
