"""What reaches the terminal of a run and what only its log file, by speaker, level and rank."""

import subprocess
import sys

from tests.conftest import ROOT

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
warnings.warn("about the run")
logging.getLogger("DeepSpeed").setLevel(20)  # as DeepSpeed does
logging.getLogger("DeepSpeed").info("settings of DeepSpeed")
logging.getLogger("DeepSpeed").warning("DeepSpeed warns")
logging.getLogger("transformers").warning("transformers warns")
record("error: the last one")
"""


def speak(folder, rank):
    log = folder / "run.log"
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "RANK": str(rank), "HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", SPEAK, log], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.splitlines(), log


def test_the_terminal_of_rank_0_shows_what_is_about_the_run(tmp_path):
    shown, log = speak(tmp_path, 0)
    assert shown[1:] == [
        "said before the log file is open",
        "warning: WARNING of mmengine.runner.runner",
        "error: ERROR of mmengine.runner.runner",
        "INFO of mmengine.hooks.logger_hook",
        "warning: WARNING of mmengine.hooks.logger_hook",
        "error: ERROR of mmengine.hooks.logger_hook",
        "INFO of somebodys.hook",
        "warning: WARNING of somebodys.hook",
        "error: ERROR of somebodys.hook",
        "short line",
        "warning: UserWarning: about the run (<string>:18)",
        "warning: DeepSpeed warns",
        "warning: transformers warns",
    ]
    written = log.read_text()
    texts = [line.partition(": ")[2] or line for line in shown[1:] if line != "short line"]
    hidden = ["INFO of mmengine.runner.runner", "it will be deprecated", "settings of DeepSpeed", "long line"]
    for text in [*texts[1:], *hidden, "error: the last one"]:
        assert text in written, text
    assert "\x1b" not in written + "".join(shown)


def test_of_other_ranks_warnings_and_errors_reach_the_terminal(tmp_path):
    shown, log = speak(tmp_path, 1)
    assert shown[1] == "warning (rank 1): WARNING of mmengine.runner.runner"
    assert all(line.startswith(("warning (rank 1): ", "error (rank 1): ")) for line in shown[1:]) and len(shown) == 10
    assert not log.exists()
