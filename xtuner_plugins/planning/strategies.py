"""How a run can be spread over GPUs: DDP, and what DeepSpeed's JSON files say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..settings import read_deepspeed
from .job import FLOAT, Job, Strategy


def launched(line: str) -> tuple[int, str | None]:
    """Processes of a launch line, and its value of ``--deepspeed``."""
    processes, deepspeed = re.search(r"NPROC_PER_NODE=(\d+)", line), re.search(r"--deepspeed[ =](\S+)", line)
    return int(processes[1]) if processes else 1, deepspeed and deepspeed[1]


def plain(gpus: int, on_cpu: bool = False) -> Strategy:
    """Without DeepSpeed."""
    return Strategy("DDP" if gpus > 1 else "one process", gpus, on_cpu=on_cpu)


def strategy_named(name: str | None, gpus: int) -> Strategy:
    """The strategy of a name for ``--deepspeed``; DDP for None."""
    return from_deepspeed(name, read_deepspeed(name), gpus) if name else plain(gpus)


def from_deepspeed(name: str, settings: Mapping[str, Any], gpus: int) -> Strategy:
    """The strategy of a DeepSpeed JSON file; what it doesn't say is DeepSpeed's own default.

    Raises:
        ValueError: ZeRO's stage is none of 1, 2, 3.
    """
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        raise ValueError(f"{name}: zero_optimization.stage is {stage!r}; plans are made for 1, 2 and 3")
    keys = dict(bucket="reduce_bucket_size", live="stage3_max_live_parameters", prefetch="stage3_prefetch_bucket_size")
    sizes = {field: int(zero[key]) for field, key in keys.items() if key in zero}
    optimizer, weights = (
        (zero.get(f"offload_{part}") or {}).get("device", "none") != "none" for part in ("optimizer", "param")
    )
    sums = (settings.get("data_types") or {}).get("grad_accum_dtype")
    overlap, size = zero.get("overlap_comm", stage == 3), FLOAT if sums == "fp32" else 2
    return Strategy(name, gpus, stage, optimizer, weights, **sizes, overlap=overlap, gradient_size=size)


def obstacle(job: Job, strategy: Strategy) -> str:
    """Why a job can't run under a strategy, with the remedy; '' if it can."""
    if strategy.gpus % job.sharing or job.shape.llm.heads % math.lcm(job.shape.llm.kv_heads, job.sharing):
        return (
            f"sequence_parallel={job.sharing} must divide the {strategy.gpus} GPUs and the LLM's "
            f"{job.shape.llm.heads} attention heads; give other --gpus, or another value"
        )
    if strategy.stage == 3 and job.quantized:
        return "packed weights can't be partitioned by ZeRO-3; use --deepspeed deepspeed_zero2"
    if strategy.stage == 3 and job.copied:
        return (
            "the reference's frozen copy of what trains can't be partitioned by ZeRO-3; use precompute_reference=True "
            "or --deepspeed deepspeed_zero2"
        )
    return ""
