"""What a run says on its terminal, and what only its log file holds.

MMEngine prints some 270 lines of environment, config and hooks before the first step. On the terminal they would hide
the table of what trains. So there: what this project and the user's own code say, MMEngine's lines of validation, and
warnings and errors of everyone on every rank. The log file in the work directory holds all of that and the rest.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

# Packages that describe themselves below the level of warnings, and the one module whose lines are about the run.
QUIET = ("mmengine", "xtuner", "deepspeed")
SHOWN = "mmengine.hooks.logger_hook"
# Warnings that no user can act on: about code of libraries, or about what this project sets on purpose.
EXPECTED = re.compile("deprecated|untested optimizer|Setting (OMP|MKL)_NUM_THREADS")
# Loggers that would write to the terminal in a format of their own.
OTHERS = ("DeepSpeed", "transformers")
STEP_LINE = re.compile(r"\bstep +(?P<step>\d+)/(?P<last>\d+)  .*?\bloss (?P<loss>\S+)")

_early: list[logging.LogRecord] = []  # said before the log file is open


def open_console() -> None:
    """Sends what loggers and warnings say in this process through one terminal format and into the log file.

    Call it before MMEngine's runner is built; a second call does nothing.
    """
    from mmengine.logging import MMLogger

    if hasattr(MMLogger.__init__, "__wrapped__"):
        return
    MMLogger.__init__ = _with_terminal(MMLogger.__init__)
    for logger in MMLogger._instance_dict.values():  # one that reading the config has made
        _take_over(logger)
    warnings.showwarning = _as_log_record(warnings.showwarning)
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


def step_line(step: int, last: int, figures: Mapping[str, float], rates: Mapping[str, tuple[float, float]]) -> str:
    """The line of a training step.

    Args:
        step: Optimizer steps done.
        last: Optimizer steps of the run.
        figures: ``eta`` (seconds), ``loss``, ``accuracy`` and ``margin`` (of preference pairs), ``grad_norm``,
            ``tokens_per_second``, ``samples_per_second``, ``padding`` (share of all positions), ``peak_memory_gib``;
            those that are missing aren't shown.
        rates: Lowest and highest learning rate by what it is of, as `hooks.step_line.learning_rates` returns them.
    """
    shown = {
        "eta": lambda value: f"eta {duration(value)}",
        "loss": lambda value: f"loss {value:.4f}",
        "accuracy": lambda value: f"accuracy {value:.0%}",
        "margin": lambda value: f"margin {value:.3g}",
        "grad_norm": lambda value: f"grad norm {value:.3g}",
        "lr": lambda _: f"lr {', '.join(_rate(*rate) for rate in rates.items())}",
        "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
        "samples_per_second": lambda value: f"{value:,.1f} samples/s",
        "padding": lambda value: f"padding {value:.1%}",
        "peak_memory_gib": lambda value: f"memory {value:.2f} GiB",
    }
    given = {**figures, "lr": 0.0} if rates else figures
    words = [write(given[name]) for name, write in shown.items() if name in given]
    return "  ".join([f"step {step:>{len(str(last))}}/{last}", *words])


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``, with days in front where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days}d " * bool(days) + f"{hours}:{minutes % 60:02}:{rest:02}"


def _rate(name: str, rate: tuple[float, float]) -> str:
    low, high = (f"{value:.2e}" for value in rate)
    return f"{name} {low if low == high else f'{low}..{high}'}".strip()


class Terminal(logging.StreamHandler):
    """Shows messages alone, without time and place; those of warnings and errors say what they are and of which rank.

    A record with the attribute ``terminal`` is shown as that text.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        speaker = getattr(record, "speaker", None) or _speaker()
        is_quiet = speaker.partition(".")[0].lower() in QUIET and speaker != SHOWN
        if record.levelno >= logging.WARNING:
            return _is_news(record) and super().filter(record)
        return not is_quiet and rank() == 0 and super().filter(record)

    def format(self, record: logging.LogRecord) -> str:
        text = getattr(record, "terminal", None) or record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if record.levelno < logging.WARNING:
            return text
        where = f" (rank {rank()})" if rank() else ""
        return f"{record.levelname.lower()}{where}: {text}"


def rank() -> int:
    """This process's rank, also before its process group is there."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


class _Forward(logging.Handler):
    """Hands records of another logger to MMEngine's."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(record.levelno, record.getMessage(), record.name)


class _Early(logging.Handler):
    """Keeps records for the log file that isn't open yet."""

    def emit(self, record: logging.LogRecord) -> None:
        _early.append(record)


def _tell(level: int, text: str, speaker: str) -> None:
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().log(level, text, extra={"speaker": speaker})


def _with_terminal(build):
    @functools.wraps(build)
    def built(self, *args, **kwargs):
        build(self, *args, **kwargs)
        _take_over(self)

    return built


def _take_over(logger) -> None:
    """Gives a logger of MMEngine our terminal, and every rank a file; what was said early goes into it."""
    theirs = logger.handlers[0]  # writes to the terminal
    ours = Terminal(sys.stdout)
    ours.setLevel(min(theirs.level, logging.WARNING))
    for each in theirs.filters:
        ours.addFilter(each)
    logger.handlers[0] = ours
    if logger.log_file is None:
        logger.handlers.append(_Early())
        return
    if len(logger.handlers) == 1:  # another rank than 0
        logger.handlers.append(_file_of_rank(Path(logger.log_file)))
    for entry in _early:
        if entry.levelno >= logger.handlers[1].level:
            logger.handlers[1].handle(entry)
    _early.clear()


def _file_of_rank(path: Path) -> logging.FileHandler:
    """Warnings and errors of another rank than 0, in a file that is made when there are any."""
    from mmengine.logging.logger import MMFormatter

    handler = logging.FileHandler(path.with_suffix(f".rank{rank()}{path.suffix}"), "w", delay=True)
    handler.setFormatter(MMFormatter(color=False, datefmt="%Y/%m/%d %H:%M:%S"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(_is_news)
    return handler


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING or not EXPECTED.search(record.getMessage())


def _as_log_record(show):
    @functools.wraps(show)
    def shown(message, category, filename, lineno, file=None, line=None):
        if file is not None:
            show(message, category, filename, lineno, file, line)
        else:
            _tell(logging.WARNING, f"{category.__name__}: {message} ({filename}:{lineno})", "warnings")

    return shown


def _speaker() -> str:
    """The module that logs: the nearest caller outside of the machinery of logging."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith(("logging", "mmengine.logging")):
            return name
        frame = frame.f_back
    return ""
