"""What XTuner's own command calls first: prepares its process, checks the config, or hands over to our launcher.

XTuner calls ``cfg.model_resource['fn']`` right after loading a config and before building anything. It is the only
early entry point that every process of every launcher reaches, so configs name `prepare_runtime` there::

    model_resource = dict(fn=prepare_runtime)
    pretrained_model_name_or_path = None
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
import threading
import time
import types

from mmengine.config import Config
from mmengine.logging import print_log

from ... import settings
from ...processes import ENDED_BY, PARENT_ENDED, POLL_SECONDS, STARTED_BY, die_with_parent, parent_of, program_of
from ...weights.checkpoint import open_checkpoint
from ...weights.errors import CheckpointError
from .. import register_all
from ..run.runtime import adjust_stack
from ..watch.console import open_console
from ..watch.stopping import COMMAND
from .launcher import check_processes, make_reloadable


def prepare_runtime(pretrained_model_name_or_path: str | None = None) -> str | None:
    """Prepares the process; returns ``pretrained_model_name_or_path``, which XTuner hands in, unchanged.

    Safe to call more than once. Registers this project's classes, so that configs may name types by string.
    """
    _end_with_xtuner()
    open_console()
    register_all()  # a config's lazy imports may come later than a type named by string
    adjust_stack()
    _settle_before_building()
    return pretrained_model_name_or_path


def _settle_before_building() -> None:
    """Extends XTuner's ``check_cfg``, which runs after the config was read and before anything is built.

    XTuner's command is a module of its own or, under ``xtuner train``, the main module.
    """
    for module in (sys.modules.get("__main__"), sys.modules.get("xtuner.tools.train")):
        check = getattr(module, "check_cfg", None)
        if check is not None and not hasattr(check, "__wrapped__"):
            module.check_cfg = functools.wraps(check)(functools.partial(_settle, check, module))


def _settle(check, module: types.ModuleType, cfg: Config, args: argparse.Namespace) -> None:
    """Checks the config, finds the checkpoint of ``--resume auto``, and settles what ``--deepspeed`` would lose.

    A refusal ends each rank with status 2 and is one line of one rank.
    """
    from ...dtypes import resolve_dtype
    from ..run.loss_scaling import settle_deepspeed_dtype
    from ..run.param_groups import keep_grouping
    from ..run.resume import settle_start

    check(cfg, args)
    wants_to_resume = args.resume is not None or cfg.get("resume")
    try:
        if STARTED_BY not in os.environ:  # else the launcher has done it
            _read_again(cfg, args)
        make_reloadable(cfg)  # the run writes it into its work directory
        settle_start(cfg, args)
    except (settings.ConfigError, CheckpointError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # XTuner's own reads the whole file.
    module.get_seed_from_checkpoint = lambda path: open_checkpoint(path).run["meta"]["seed"]
    if wants_to_resume and os.environ.get("RANK", "0") == "0":
        said = f"resuming from {args.resume}" if args.resume else "no checkpoint to resume yet: starting anew"
        print_log(said, "current")
    if args.deepspeed:
        args.deepspeed = str(settings.deepspeed_file(args.deepspeed))  # before XTuner looks up its own
        keep_grouping(cfg)
        dtype = resolve_dtype(cfg.model.get("dtype", "auto"))  # XTuner looks at the device alone
        module.auto_dtype_of_deepspeed_config = functools.partial(settle_deepspeed_dtype, dtype=dtype)


def _read_again(cfg: Config, args: argparse.Namespace) -> None:
    """Replaces what XTuner has read by the same with the command line's words, which its own parser tears apart.

    One rank of each node checks it; the others wait for that rank where the process group begins.
    """
    from ..check.build import check_config

    parser = argparse.ArgumentParser(add_help=False)
    settings.add_config_options(parser)
    words = parser.parse_known_args(sys.argv[1:])[0].cfg_options
    whole = settings.read_config(args.config, settings.parse_words((), words))
    settings.import_types(whole)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_processes(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), os.environ)
        check_config(whole, settings.read_deepspeed(args.deepspeed) if args.deepspeed else None)
    object.__setattr__(cfg, "_cfg_dict", whole._cfg_dict)


def _end_with_xtuner() -> None:
    """Makes this process stop in order when the ``xtuner train`` above it ends, which passes no signal on.

    XTuner leaves its processes behind when it is killed, and on Ctrl-C it kills its one child a quarter of a second
    later. So one process becomes `tools/train.py`, which ends with XTuner and passes that on to the training; under
    torchrun every rank looks after itself.
    """
    parent = os.getppid()
    if STARTED_BY in os.environ or program_of(parent) not in ("xtuner", "torchrun"):
        return
    os.environ[ENDED_BY] = str(int(PARENT_ENDED))
    die_with_parent(parent)
    if program_of(parent) == "xtuner":
        os.environ[COMMAND] = shlex.join(["xtuner", "train", *sys.argv[1:]])
        os.execv(sys.executable, [sys.executable, "-m", "xtuner_plugins.engine.launch.launcher", *sys.argv[1:]])
    above = parent_of(parent)
    if program_of(above) == "xtuner":
        threading.Thread(target=_watch_above, args=(parent, above), daemon=True, name="end-with-xtuner").start()


def _watch_above(torchrun: int, xtuner: int) -> None:
    while parent_of(torchrun) == xtuner:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), PARENT_ENDED)
