"""Makes MMEngine, XTuner and DeepSpeed run on this machine: CPU, one GPU, many.

XTuner calls ``cfg.model_resource['fn']`` right after loading a config and before building anything. That is the one
early entry that reaches every process of every launcher, so `prepare_runtime` is named there::

    pretrained_model_name_or_path = base
    model_resource = dict(fn=prepare_runtime)

Each adjustment below answers one defect of the pinned stack and is tested, so that an upgrade shows which can go.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import signal
import socket
import sys
import threading
import time
import types

import torch
import torch.distributed as dist

from ..config_file import ConfigError, load_config
from ..processes import POLL_SECONDS, STARTED_BY, die_with_parent, parent_of, program_of


def prepare_runtime(pretrained_model_name_or_path: str) -> str:
    """Prepares the process and returns the base's path unchanged.

    Safe to call more than once. Registers this project's classes, so that configs may name types by string.

    Args:
        pretrained_model_name_or_path: The base directory, as XTuner passes it.

    Returns:
        The same path.
    """
    _end_with_xtuner()
    # The registries fill when the modules are imported; a config's lazy imports may come later than a string type.
    import xtuner_plugins.datasets  # noqa: F401
    import xtuner_plugins.engine  # noqa: F401
    import xtuner_plugins.models  # noqa: F401

    allow_checkpoint_types()
    if not torch.cuda.is_available():
        _use_gloo_without_gpu()
        _build_no_cpu_op()
        _report_no_half_precision_without_gpu()
    _describe_single_process()
    _use_our_deepspeed_strategy()
    _settle_before_building()
    return pretrained_model_name_or_path


def leave_process_group() -> None:
    """Ends the process group, all ranks together. A process that exits with it still open may abort, after its work."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def allow_checkpoint_types() -> None:
    """Lets ``torch.load(weights_only=True)`` open MMEngine's own checkpoints for resuming.

    They hold message-hub histories, config dictionaries and numpy arrays beside the tensors: plain data. Everything
    else in a checkpoint is still refused.
    """
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    rebuild = [np._core.multiarray.scalar, np._core.multiarray._reconstruct]
    # Checkpoints written under numpy 1 name the same functions by their old path.
    old_names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in rebuild]
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    torch.serialization.add_safe_globals(
        [np.ndarray, np.dtype, *dtypes, *rebuild, *old_names, HistoryBuffer, ConfigDict]
        + [(_history_method, "builtins.getattr")]
    )


def _history_method(owner: type, name: str):
    """Stands in for ``getattr`` when a checkpoint is read: a `HistoryBuffer` pickles its methods through it.

    The real ``getattr`` would let a prepared file reach any object from an allowed one.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise ValueError(f"the checkpoint asks for the attribute {name!r} of {owner!r}, which no training run writes")
    return getattr(HistoryBuffer, name)


def _use_gloo_without_gpu() -> None:
    """MMEngine's start of a process group sets a CUDA device and takes nccl from the config; neither exists here."""
    import mmengine.dist.utils as mm_dist

    def init_dist_on_cpu(backend: str, init_backend: str = "torch", **kwargs) -> None:
        if init_backend == "deepspeed":
            import deepspeed

            deepspeed.init_distributed(dist_backend="gloo", **kwargs)
        else:
            dist.init_process_group(backend="gloo", **kwargs)

    mm_dist._init_dist_pytorch = init_dist_on_cpu


def _build_no_cpu_op() -> None:
    """Keeps DeepSpeed from compiling its shared-memory op when it starts on a CPU.

    Compiling needs a compiler, a minute, and a lock that a killed run leaves behind, for which the next run waits for
    ever. Gloo does the same work.
    """
    # Not `import deepspeed.comm.torch as ...`: that package star-imports a name `torch`, which is PyTorch itself.
    importlib.import_module("deepspeed.comm.torch")
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None


def _report_no_half_precision_without_gpu() -> None:
    """XTuner fills ``"auto"`` of a DeepSpeed JSON from ``torch.cpu``, which has no ``is_bf16_supported``."""
    import xtuner.tools.utils as xtuner_utils

    cpu = types.SimpleNamespace(is_available=lambda: False, is_bf16_supported=lambda: False)
    xtuner_utils.get_torch_device = lambda: cpu


def _describe_single_process() -> None:
    """A run without launcher tells DeepSpeed that it is alone; otherwise DeepSpeed looks for MPI and fails."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(free_port)}.items():
        os.environ.setdefault(name, value)


def _use_our_deepspeed_strategy() -> None:
    """XTuner names its own strategy in every config that ``--deepspeed`` rewrites; MMEngine calls no hook under it."""
    import xtuner.engine

    from .strategy import DeepSpeedStrategy

    xtuner.engine.DeepSpeedStrategy = DeepSpeedStrategy


def _settle_before_building() -> None:
    """Settles what XTuner's command would get wrong, when it has read the config and before it builds anything.

    A config that would be ignored in parts or can't work is refused in one line, and so is a broken checkpoint;
    ``--resume auto`` gets its path, and ``paramwise_cfg`` is kept where ``--deepspeed`` drops it. The command is a
    module of its own or, under ``xtuner train``, the main module.
    """
    from .param_groups import keep_grouping
    from .resume import settle_start

    for module in (sys.modules.get("__main__"), sys.modules.get("xtuner.tools.train")):
        check = getattr(module, "check_cfg", None)
        if check is None or hasattr(check, "__wrapped__"):
            continue

        def settle(cfg, args, check=check):
            check(cfg, args)
            if STARTED_BY not in os.environ:  # tools/train.py has done it
                _check_file(args)
            wants_to_resume = args.resume is not None or cfg.get("resume")
            alone = "1" if args.launcher == "none" else "0"
            settle_start(cfg, args, world_size=int(os.environ.get("WORLD_SIZE", alone)) or None)
            if wants_to_resume and os.environ.get("RANK", "0") == "0":
                print(f"resuming from {args.resume}" if args.resume else "no checkpoint to resume yet: starting anew")
            if args.deepspeed:
                keep_grouping(cfg)

        module.check_cfg = functools.wraps(check)(settle)


def _check_file(args: argparse.Namespace) -> None:
    """Checks the config as ``tools/train.py`` does. XTuner has replaced parts of its own copy, so it is read again."""
    from .config_check import check_config

    try:
        check_config(load_config(args.config, args.cfg_options))
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _end_with_xtuner() -> None:
    """Lets a run end with the ``xtuner train`` that was started: killed, it would leave its processes behind."""
    parent = os.getppid()
    if STARTED_BY in os.environ or program_of(parent) not in ("xtuner", "torchrun"):
        return
    die_with_parent(parent)
    above = parent_of(parent)
    if program_of(parent) == "torchrun" and program_of(above) == "xtuner":
        threading.Thread(target=_watch_above, args=(parent, above), daemon=True, name="end-with-xtuner").start()


def _watch_above(torchrun: int, xtuner: int) -> None:
    while parent_of(torchrun) == xtuner:
        time.sleep(POLL_SECONDS)
    os.kill(torchrun, signal.SIGKILL)  # and the kernel this process with it
