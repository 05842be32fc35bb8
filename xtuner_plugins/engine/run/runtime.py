"""Makes MMEngine, XTuner and DeepSpeed run on this machine: a CPU, one GPU, or several.

Each adjustment works around one defect of the pinned stack.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

import torch
import torch.distributed as dist

from ...processes import allocator_settings, free_port

M_MMAP_THRESHOLD = -3  # malloc.h; setting it also ends its growth
RETURNED_FROM = 4 << 20  # bytes; smaller blocks are used again soon enough


def adjust_stack() -> None:
    """Makes every adjustment that this process needs."""
    save_directly()
    # For processes that XTuner's own command has started; no tensor is on a GPU yet.
    os.environ.update(allocator_settings(os.environ, torch.cuda.is_available()))
    if not torch.cuda.is_available():
        _use_gloo_without_gpu()
        _build_no_cpu_op()
        _return_freed_memory()
        warnings.filterwarnings("ignore", message="'pin_memory' argument")  # recipes set it for GPUs
    _describe_single_process()
    _use_our_deepspeed_strategy()


def leave_process_group() -> None:
    """Ends the process group on all ranks together; a process that exits with it open may abort after its work."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def save_directly() -> None:
    """Makes tensors go to the disk one by one; MMEngine makes all bytes of a file in memory, then writes them."""
    from mmengine.runner import runner

    runner.save_checkpoint = lambda checkpoint, filename, **_: torch.save(checkpoint, filename)


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
    from mmengine.runner import CheckpointLoader

    from .strategy import DeepSpeedStrategy
    from .transfer import load_any

    xtuner.engine.DeepSpeedStrategy = DeepSpeedStrategy
    CheckpointLoader.register_scheme("", load_any, force=True)
