"""How a run can be spread over GPUs: DDP, and what DeepSpeed's JSON files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .job import FLOAT, Strategy


def plain(gpus: int) -> Strategy:
    """Without DeepSpeed."""
    return Strategy("DDP" if gpus > 1 else "one process", gpus)


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
    return Strategy(
        name=name,
        gpus=gpus,
        stage=zero["stage"],
        offload_optimizer=_is_offloaded(zero.get("offload_optimizer")),
        offload_weights=_is_offloaded(zero.get("offload_param")),
        bucket=int(zero.get("reduce_bucket_size", defaults.bucket)),
        live=int(zero.get("stage3_max_live_parameters", defaults.live)),
        overlap=zero.get("overlap_comm", zero["stage"] == 3),
        gradient_size=FLOAT if sums == "fp32" else 2,
    )


def _is_offloaded(settings: Mapping[str, Any] | None) -> bool:
    return (settings or {}).get("device", "none") != "none"
