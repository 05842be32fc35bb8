"""Trainings as a user starts them: by a command, in a session of its own, which is as a terminal."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.forked import STEP_LINE, training
from tests.process_table import MARK, marked, wait_until

OURS, XTUNER = (sys.executable, "tools/train.py"), (str(Path(sys.executable).with_name("xtuner")), "train")


class Started:
    """A training of many epochs with all of its processes, which carry a mark of their own.

    Attributes:
        launcher: The process that was started.
    """

    def __init__(self, work_dir: Path, *data, command=OURS, name="", env=(), options=(), **case):
        self.work_dir, self.mark, self.log = work_dir, f"{work_dir} {name}", Path(f"{work_dir}{name}.log")
        options = {"train_cfg.max_epochs": 2000, **dict(options)}
        arguments, self.env = training(work_dir, *data, options=options, **case)
        self.env |= {**dict(env), MARK: self.mark}
        self.launch([*command, *arguments])

    def launch(self, command: list[str]) -> None:
        self.before = {*self.work_dir.glob("*/*.log")}
        with self.log.open("w") as out:
            options = dict(cwd=ROOT, env=self.env, stdout=out, stderr=out, start_new_session=True)
            self.launcher = subprocess.Popen(command, **options)

    def trains(self) -> None:
        """Waits for the line of a step."""

        def has_line() -> bool:
            return any(STEP_LINE.search(log.read_text()) for log in {*self.work_dir.glob("*/*.log")} - self.before)

        wait_until(lambda: has_line() or self.launcher.poll() is not None, HANGS_AFTER)
        assert has_line(), self.said[-3000:]

    @property
    def said(self) -> str:
        return self.log.read_text()

    def pids(self) -> list[int]:
        return marked(self.mark)

    def ends(self, seconds: float = HANGS_AFTER) -> bool:
        """Whether all of its processes end."""
        return wait_until(lambda: not self.pids(), seconds)

    def signal_all(self, number: int) -> None:
        """As a node that fails: everything at once, none has time to say a word."""
        for pid in [self.launcher.pid, *self.pids()]:
            with contextlib.suppress(ProcessLookupError):  # it ended with its parent
                os.kill(pid, number)
