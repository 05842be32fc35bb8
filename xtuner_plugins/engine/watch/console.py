"""What a run says on its terminal, and what only its log file holds.

MMEngine prints some 270 lines of environment, config and hooks before the first step. On the terminal they would hide
the table of what trains. So there: what this project and the user's own code say, MMEngine's lines of validation, and
warnings and errors of everyone on every rank. The log file in the work directory holds all of that and the rest, from
the moment that it is open.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import warnings

# Packages that describe themselves below the level of warnings, and the one module whose lines are about the run.
QUIET = ("mmengine", "xtuner", "deepspeed")
SHOWN = "mmengine.hooks.logger_hook"
# Warnings that no user can act on: about code of libraries, or about what this project sets on purpose.
EXPECTED = re.compile("deprecated|untested optimizer|Setting (OMP|MKL)_NUM_THREADS")
# Loggers that would write to the terminal in a format of their own; the last one is Python's, of its warnings.
OTHERS = ("DeepSpeed", "transformers", "py.warnings")
STEP_LINE = re.compile(r"\bstep +(?P<step>\d+)/(?P<last>\d+)  .*?\bloss (?P<loss>\S+)")  # of hooks/step_line.py


def open_console() -> None:
    """Sends what loggers and warnings say in this process through one terminal format and into the log file.

    Call it before MMEngine's runner is built; a second call does nothing.
    """
    from mmengine.logging import MMLogger

    build = MMLogger.__init__
    if hasattr(build, "__wrapped__"):
        return

    @functools.wraps(build)
    def built(self, *args, **kwargs):
        build(self, *args, **kwargs)
        _take_over(self)

    MMLogger.__init__ = built
    for logger in MMLogger._instance_dict.values():  # one that reading the config has made
        _take_over(logger)
    warnings.formatwarning = lambda text, kind, file, line, _=None: f"{kind.__name__}: {text} ({file}:{line})"
    logging.captureWarnings(True)
    for name in OTHERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Forward()], False


def record(text: str) -> None:
    """Adds to the log file what the terminal shows without a logger, such as a run's last error."""
    from mmengine.logging import MMLogger

    entry = logging.LogRecord("mmengine", logging.ERROR, __file__, 0, text, None, None, "record")
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(entry)


class Terminal(logging.StreamHandler):
    """Shows messages alone, without time and place; those of warnings and errors say what they are and of which rank.

    A record with the attribute ``terminal`` is shown as that text.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            is_expected = record.levelno == logging.WARNING and EXPECTED.search(record.getMessage())
            return not is_expected and super().filter(record)
        speaker = getattr(record, "speaker", None) or _speaker()
        is_quiet = speaker.partition(".")[0].lower() in QUIET and speaker != SHOWN
        return not is_quiet and rank() == 0 and super().filter(record)

    def format(self, record: logging.LogRecord) -> str:
        text = getattr(record, "terminal", None) or record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        where = f" (rank {rank()})" if rank() else ""
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}{where}: {text}"


def rank() -> int:
    """This process's rank, also before its process group is there."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


class _Forward(logging.Handler):
    """Hands records of another logger to MMEngine's."""

    def emit(self, record: logging.LogRecord) -> None:
        from mmengine.logging import MMLogger

        MMLogger.get_current_instance().log(record.levelno, record.getMessage(), extra={"speaker": record.name})


def _take_over(logger) -> None:
    """Gives a logger of MMEngine our terminal."""
    theirs, ours = logger.handlers[0], Terminal(sys.stdout)
    ours.setLevel(min(theirs.level, logging.WARNING))
    for each in theirs.filters:
        ours.addFilter(each)
    logger.handlers[0] = ours


def _speaker() -> str:
    """The module that logs: the nearest caller outside of the machinery of logging."""
    frame = sys._getframe(1)
    while (name := frame.f_globals.get("__name__", "")).startswith((__name__, "logging", "mmengine.logging")):
        frame = frame.f_back
    return name
