"""Commands of this project in a notebook: what a terminal would show, without the details of a training's log."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from xtuner_plugins.processes import start_bound
from xtuner_plugins.toy.quickstart import progress_line

LOG_LINE = re.compile(r"^\d\d/\d\d \d\d:\d\d:\d\d - \w+ - (\w+) - (.*)")  # MMEngine's; the lines after it belong to it
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
    """The lines of a tool's output that are worth a look in a notebook.

    Of MMEngine's log these are: what trains, every 50th step and the last, warnings of this project's own, errors. A
    line that belongs to no log message is the tool's own, and is kept.
    """
    shown = True
    for line in lines:
        message = LOG_LINE.match(line)
        if message is None:
            if shown:
                yield line.rstrip("\n")
            continue
        level, text = message.groups()
        shown = text == "What this run trains:" or (level != "INFO" and "deprecated" not in text)
        if shown:
            yield text
        elif step := progress_line(line):
            yield step
