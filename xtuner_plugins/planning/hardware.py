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
        devices: how `torch.cuda.get_device_name` ends for cards with this peak. What follows a name tells a slower
            card: `H100 PCIe`, `RTX 4090 Laptop GPU`, a `MIG` slice.
    """

    name: str
    memory: int
    teraflops: float
    dtype: str = "bfloat16"
    devices: tuple[str, ...] = ()


_A100_FORMS = ("-SXM4-40GB", "-SXM4-80GB", "-PCIE-40GB", " 80GB PCIe")
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", 140, 989, devices=("NVIDIA H200",)),
        GPU("H100", 80, 989, devices=("H100 80GB HBM3", "NVIDIA H800")),  # SXM
        GPU("L40S", 48, 362, devices=("NVIDIA L40S",)),
        GPU("A100", 80, 312, devices=tuple(f"A{n}{form}" for n in (100, 800) for form in _A100_FORMS)),  # also 40 GB
        GPU("4090", 24, 165, devices=("RTX 4090",)),
        GPU("T4", 16, 65, "float16", ("Tesla T4",)),
    )
}


def gpu_of_device(name: str) -> GPU | None:
    """The card that `torch.cuda.get_device_name` calls so; None where its peak isn't known."""
    return next((gpu for gpu in GPUS.values() if gpu.devices and name.endswith(gpu.devices)), None)
