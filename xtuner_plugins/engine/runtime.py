"""Makes MMEngine, XTuner and DeepSpeed run on this machine: a CPU, one GPU, or several.

XTuner calls ``cfg.model_resource['fn']`` right after loading a config and before building anything. It is the only
early entry point that every process of every launcher reaches, so configs name `prepare_runtime` there::

    model_resource = dict(fn=prepare_runtime)
    pretrained_model_name_or_path = None

Each adjustment below works around one defect of the pinned stack and is tested, so that an upgrade shows which can go.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shlex
import sys
import threading
import time
import types

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log

from ..processes import (
    ENDED_BY,
    PARENT_ENDED,
    POLL_SECONDS,
    STARTED_BY,
    die_with_parent,
    free_port,
    parent_of,
    program_of,
)
from ..settings import ConfigError, load_config, make_reloadable
from . import register_all
from .allocator import allocator_settings
from .console import open_console
from .stopping import COMMAND

M_MMAP_THRESHOLD = -3  # malloc.h; setting it also ends its growth
RETURNED_FROM = 4 << 20  # bytes; smaller blocks are used again soon enough


def prepare_runtime(pretrained_model_name_or_path: str | None = None) -> str | None:
    """Prepares the process; returns ``pretrained_model_name_or_path``, which XTuner hands in, unchanged.

    Safe to call more than once. Registers this project's classes, so that configs may name types by string.
    """
    _end_with_xtuner()
    open_console()
    register_all()  # a config's lazy imports may come later than a type named by string
    allow_checkpoint_types()
    # For processes that XTuner's own command has started; no tensor is on a GPU yet.
    os.environ.update(allocator_settings(os.environ, torch.cuda.is_available()))
    if not torch.cuda.is_available():
        _use_gloo_without_gpu()
        _build_no_cpu_op()
        _report_no_half_precision_without_gpu()
        _return_freed_memory()
    _describe_single_process()
    _use_our_deepspeed_strategy()
    _settle_before_building()
    return pretrained_model_name_or_path


def leave_process_group() -> None:
    """Ends the process group on all ranks together; a process that exits with it open may abort after its work."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def allow_checkpoint_types() -> None:
    """Lets ``torch.load(weights_only=True)`` open MMEngine's own checkpoints for resuming.

    Besides tensors they hold message-hub histories, config dictionaries and numpy arrays. Everything else in a
    checkpoint is still refused.
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
    """Replaces ``getattr`` when a checkpoint is read: a `HistoryBuffer` pickles its methods through it.

    The real ``getattr`` would let a malicious file reach any object from an allowed one.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise ValueError(f"the checkpoint asks for the attribute {name!r} of {owner!r}, which no training run writes")
    return getattr(HistoryBuffer, name)


def _use_gloo_without_gpu() -> None:
    """Starts process groups with gloo: MMEngine would set a CUDA device and take nccl from the config."""
    import mmengine.dist.utils as mm_dist

    def init_dist_on_cpu(backend: str, init_backend: str = "torch", **kwargs) -> None:
        if init_backend == "deepspeed":
            import deepspeed

            deepspeed.init_distributed(dist_backend="gloo", **kwargs)
        else:
            dist.init_process_group(backend="gloo", **kwargs)

    mm_dist._init_dist_pytorch = init_dist_on_cpu


def _build_no_cpu_op() -> None:
    """Keeps DeepSpeed from compiling its shared-memory op when it starts on a CPU; gloo does the same work.

    Compiling needs a compiler, a minute, and a lock that a killed run leaves behind and the next run waits for forever.
    """
    # Not `import deepspeed.comm.torch as ...`: that package star-imports a name `torch`, which is PyTorch itself.
    importlib.import_module("deepspeed.comm.torch")
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None


def _report_no_half_precision_without_gpu() -> None:
    """Provides ``is_bf16_supported``, which XTuner calls for DeepSpeed's ``"auto"`` and ``torch.cpu`` lacks."""
    import xtuner.tools.utils as xtuner_utils

    cpu = types.SimpleNamespace(is_available=lambda: False, is_bf16_supported=lambda: False)
    xtuner_utils.get_torch_device = lambda: cpu


def _return_freed_memory() -> None:
    """Keeps glibc from holding tensors that were freed: without a GPU, activations are in its memory.

    When a block of up to 32 MiB is freed, glibc raises the size from which blocks are given back to the system to that
    of the block. Tensors below then lie on the heap, aligned ones are hardly used again, and the heap grows with every
    layer although its activations are freed for recomputation.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such rule
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, RETURNED_FROM)


def _describe_single_process() -> None:
    """Tells DeepSpeed that a run without launcher is one process; otherwise it looks for MPI and fails."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(free_port())}.items():
        os.environ.setdefault(name, value)


def _use_our_deepspeed_strategy() -> None:
    """Replaces the strategy that XTuner puts in a config under ``--deepspeed`` by ours, which calls hooks.

    A run without ``--deepspeed`` reads DeepSpeed's directories, too.
    """
    import xtuner.engine

    from .strategy import DeepSpeedStrategy
    from .transfer import read_for_plain_runs

    xtuner.engine.DeepSpeedStrategy = DeepSpeedStrategy
    read_for_plain_runs()


def _settle_before_building() -> None:
    """Extends XTuner's ``check_cfg``, which runs after the config was read and before anything is built.

    It then also refuses, in one line, settings without effect, impossible values and broken checkpoints, finds the
    checkpoint of ``--resume auto``, takes our DeepSpeed settings, tells DeepSpeed the dtype, and keeps
    ``paramwise_cfg``, which ``--deepspeed`` drops. XTuner's command is a module of its own or, under ``xtuner train``,
    the main module.
    """
    from .param_groups import keep_grouping
    from .resume import settle_start

    for module in (sys.modules.get("__main__"), sys.modules.get("xtuner.tools.train")):
        check = getattr(module, "check_cfg", None)
        if check is None or hasattr(check, "__wrapped__"):
            continue

        def settle(cfg, args, check=check, module=module):
            check(cfg, args)
            if STARTED_BY not in os.environ:  # tools/train.py has done it
                _check_file(args)
            make_reloadable(cfg)  # the run writes it into its work directory
            if args.deepspeed:
                _use_our_deepspeed_file(args)
            wants_to_resume = args.resume is not None or cfg.get("resume")
            settle_start(cfg, args)
            if wants_to_resume and os.environ.get("RANK", "0") == "0":
                print_log(
                    f"resuming from {args.resume}" if args.resume else "no checkpoint to resume yet: starting anew",
                    "current",
                )
            if args.deepspeed:
                keep_grouping(cfg)
                _give_deepspeed_the_dtype(module, cfg)

        module.check_cfg = functools.wraps(check)(settle)


def _give_deepspeed_the_dtype(module: types.ModuleType, cfg: Config) -> None:
    """Extends XTuner's filling in of ``"auto"`` dtypes, which takes bfloat16 even where that is emulated."""
    from ..models.vlm import resolve_dtype
    from .loss_scaling import settle_deepspeed_dtype

    fill_in, dtype = module.auto_dtype_of_deepspeed_config, resolve_dtype(cfg.model.get("dtype", "auto"))
    module.auto_dtype_of_deepspeed_config = lambda config: fill_in(settle_deepspeed_dtype(config, dtype))


def _use_our_deepspeed_file(args: argparse.Namespace) -> None:
    """Replaces a name given to ``--deepspeed`` by the path of our file, before XTuner looks up its own."""
    from ..deepspeed_json import deepspeed_file

    args.deepspeed = str(deepspeed_file(args.deepspeed))


def _check_file(args: argparse.Namespace) -> None:
    """Checks the config as ``tools/train.py`` does; reads it again, because XTuner has edited its own copy."""
    from .config_check import check_config

    try:
        check_config(load_config(args.config, args.cfg_options))
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


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
        os.execv(sys.executable, [sys.executable, "-m", "xtuner_plugins.cli.launcher", *sys.argv[1:]])
    above = parent_of(parent)
    if program_of(above) == "xtuner":
        threading.Thread(target=_watch_above, args=(parent, above), daemon=True, name="end-with-xtuner").start()


def _watch_above(torchrun: int, xtuner: int) -> None:
    while parent_of(torchrun) == xtuner:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), PARENT_ENDED)
