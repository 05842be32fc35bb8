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


def plain(gpus: int) -> Strategy:
    """Without DeepSpeed."""
    return Strategy("DDP" if gpus > 1 else "one process", gpus)


def strategy_named(name: str | None, gpus: int) -> Strategy:
    """The strategy of a name for ``--deepspeed``; DDP for None."""
    return from_deepspeed(name, read_deepspeed(name), gpus) if name else plain(gpus)


def from_deepspeed(name: str, settings: Mapping[str, Any], gpus: int) -> Strategy:
    """The strategy of a DeepSpeed JSON file; what it doesn't say is DeepSpeed's own default.

    Args:
        name: as in reports.
        settings: content of the file.
        gpus: processes of the run.

    Raises:
        ValueError: ZeRO's stage is none of 1, 2, 3.
    """
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") not in (1, 2, 3):
        raise ValueError(f"{name}: zero_optimization.stage is {zero.get('stage')!r}; plans are made for 1, 2 and 3")
    sums = (settings.get("data_types") or {}).get("grad_accum_dtype")
    defaults = Strategy(name, gpus)

    def is_offloaded(part: str) -> bool:
        return (zero.get(part) or {}).get("device", "none") != "none"

    return Strategy(
        name=name,
        gpus=gpus,
        stage=zero["stage"],
        offload_optimizer=is_offloaded("offload_optimizer"),
        offload_weights=is_offloaded("offload_param"),
        bucket=int(zero.get("reduce_bucket_size", defaults.bucket)),
        live=int(zero.get("stage3_max_live_parameters", defaults.live)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", defaults.prefetch)),
        overlap=zero.get("overlap_comm", zero["stage"] == 3),
        gradient_size=FLOAT if sums == "fp32" else 2,
    )


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
