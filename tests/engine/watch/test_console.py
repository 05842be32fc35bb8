"""What reaches the terminal of a run and what only its log file, by speaker, level and rank."""

import logging
import subprocess
import sys

from tests.conftest import ROOT
from xtuner_plugins.engine.watch.console import Terminal

# In a process of its own: the console replaces what a process has once.
SPEAK = """
import logging, os, sys, types, warnings
from mmengine.logging import MMLogger, print_log
print_log("said before there is a console", "current")
from xtuner_plugins.engine.watch.console import open_console, record
open_console(); open_console()
import mmengine.logging.logger; mmengine.logging.logger._get_rank = lambda: int(os.environ["RANK"])
print_log("said before the log file is open", "current")
logger = MMLogger.get_instance("run", log_file=sys.argv[1], log_level="INFO")
code = "def speak(logger, level, text): logger.log(level, text)"
for name in ("mmengine.runner.runner", "mmengine.hooks.logger_hook", "somebodys.hook"):
    module = types.ModuleType(name)
    exec(code, module.__dict__)
    for level in (20, 30, 40):
        module.speak(logger, level, f"{logging.getLevelName(level)} of {name}")
logger.info("long line", extra={"terminal": "short line"})
logger.warning("it will be deprecated in future")
logger.warning("said once"); logger.warning("said once")
warnings.warn("about the run")
logging.getLogger("DeepSpeed").setLevel(20)  # as DeepSpeed does
logging.getLogger("DeepSpeed").info("settings of DeepSpeed")
logging.getLogger("DeepSpeed").warning("DeepSpeed warns")
record("error: the last one")
"""
# What rank 0 shows; other ranks show what begins with a level.
SHOWN = [
    "said before the log file is open",
    "warning: WARNING of mmengine.runner.runner",
    "error: ERROR of mmengine.runner.runner",
    *("INFO of mmengine.hooks.logger_hook", "warning: WARNING of mmengine.hooks.logger_hook"),
    "error: ERROR of mmengine.hooks.logger_hook",
    *("INFO of somebodys.hook", "warning: WARNING of somebodys.hook", "error: ERROR of somebodys.hook"),
    *("short line", "warning: said once", "warning: UserWarning: about the run (<string>:19)"),
    "warning: DeepSpeed warns",
]
HIDDEN = ["INFO of mmengine.runner.runner", "it will be deprecated", "settings of DeepSpeed", "long line"]


def test_the_terminal_shows_what_is_about_the_run_and_the_log_file_all(tmp_path):
    for rank, kept in (("0", ("",)), ("1", ("warning", "error"))):
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "RANK": rank, "HOME": str(tmp_path)}
        words = [sys.executable, "-c", SPEAK, tmp_path / rank]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout, done.stderr
        shown = [line for line in SHOWN if line.startswith(kept)]
        assert done.stdout.replace(" (rank 1): ", ": ").splitlines()[1:] == shown
    assert done.stdout.count(" (rank 1): ") == len(shown) and not (tmp_path / "1").exists()
    written = (tmp_path / "0").read_text()
    for text in (*SHOWN[1:], *HIDDEN, "error: the last one"):
        assert text == "short line" or text.partition(": ")[2] in written, text
    assert "\x1b" not in written and "short line" not in written
    record = logging.LogRecord("a", logging.ERROR, "", 0, "failed", None, (ValueError, ValueError("why"), None))
    assert Terminal().format(record) == "error: failed\nValueError: why"
