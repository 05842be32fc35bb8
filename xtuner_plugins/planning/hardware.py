"""GPUs as their makers publish them."""

from __future__ import annotations

from dataclasses import dataclass

UTILIZATION = 0.4  # share of the peak that a run is taken to reach, recomputation counted as work; an assumption


@dataclass(frozen=True)
class GPU:
    """A card.

    Attributes:
        name: as given to `--gpu`.
        memory: GB of its memory, 2**30 bytes each.
        teraflops: dense peak of its matrix units, 10**12 operations a second, in `dtype` with float32 sums.
        dtype: the half precision that it has.
    """

    name: str
    memory: int
    teraflops: float
    dtype: str = "bfloat16"


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H100", 80, 989),  # SXM
        GPU("A100", 80, 312),  # SXM; also with 40 GB
        GPU("4090", 24, 165),
        GPU("T4", 16, 65, "float16"),
    )
}
