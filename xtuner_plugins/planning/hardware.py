"""GPUs as their makers publish them."""

from __future__ import annotations

import os
import re
import timeit
from dataclasses import dataclass, replace

from .memory import GIB

UTILIZATION = 0.4  # share of the peak that a run is taken to reach, recomputation counted as work; an assumption


@dataclass(frozen=True)
class GPU:
    """A card."""

    name: str  # as given to `--gpu`
    memory: int  # GB, 2**30 bytes each
    teraflops: float  # dense peak in `dtype` with float32 sums, 10**12 operations a second; 0 where it isn't known
    # How `torch.cuda.get_device_name` ends for cards with this peak; a slower card has more behind it (`Laptop GPU`).
    devices: tuple[str, ...] = ()
    dtype: str = "bfloat16"  # the half precision that it has

    @property
    def is_cpu(self) -> bool:
        """Whether it is a processor."""
        return self.dtype == "float32"


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", 140, 989, ("NVIDIA H200",)),
        GPU("H100", 80, 989, ("H100 80GB HBM3", "NVIDIA H800")),  # SXM
        GPU("H20", 96, 148, ("NVIDIA H20",)),
        GPU("A100", 80, 312, ("A100-SXM4-80GB", "A800-SXM4-80GB", "A100 80GB PCIe", "A800 80GB PCIe")),
        GPU("A100-40", 40, 312, ("A100-SXM4-40GB", "A800-SXM4-40GB", "A100-PCIE-40GB", "A800-PCIE-40GB")),
        GPU("L40S", 48, 362, ("NVIDIA L40S",)),
        GPU("A6000", 48, 155, ("RTX A6000",)),
        GPU("5090", 32, 209, ("RTX 5090",)),
        GPU("4090", 24, 165, ("RTX 4090",)),
        GPU("3090", 24, 71, ("RTX 3090",)),
        GPU("A10", 24, 125, ("NVIDIA A10",)),
        GPU("L4", 24, 121, ("NVIDIA L4",)),
        GPU("4060Ti-16", 16, 44, ("RTX 4060 Ti",)),
        GPU("T4", 16, 65, ("Tesla T4",), "float16"),
    )
}


def gpu_of_device(name: str) -> GPU | None:
    """The card that `torch.cuda.get_device_name` calls so; None where its peak isn't known."""
    return next((gpu for gpu in GPUS.values() if name.endswith(gpu.devices)), None)


def find_gpu(words: str) -> GPU:
    """The card that ``--gpu`` names.

    Args:
        words: A name of `GPUS`; memory as `24GB`, with the speed of the slowest such card; auto or cpu: this machine.

    Raises:
        ValueError: no such card; lists those that are known.
    """
    if words in ("auto", "cpu"):
        return _this_machine(words == "cpu")
    if card := next((gpu for name, gpu in GPUS.items() if name.lower() == words.lower()), None):
        return card
    if not (size := re.fullmatch(r"(\d+(?:\.\d+)?) ?Gi?B?", words, re.IGNORECASE)):
        known = ", ".join(GPUS)
        raise ValueError(f"--gpu {words}: give memory as 24GB, auto or cpu for this machine, or one of {known}")
    alike = [gpu for gpu in GPUS.values() if gpu.memory == float(size[1])]
    slowest = min(alike, key=lambda gpu: gpu.teraflops, default=GPU("", 0, 0))
    name = f"{size[1]} GB, as {slowest.name}" if alike else f"{size[1]} GB"
    return replace(slowest, name=name, memory=float(size[1]))


def _this_machine(is_cpu: bool) -> GPU:
    """Its first GPU; without one its processor and memory, with the speed of a product of matrices."""
    import torch

    if torch.cuda.is_available() and not is_cpu:
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
        half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return replace(gpu_of_device(name) or GPU(name, 0, 0, dtype=half), memory=round(memory, 1))
    memory, square = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, torch.ones(1024, 1024)
    seconds = min(timeit.repeat(lambda: square @ square, number=1, repeat=4))  # the first is slower
    teraflops = float(f"{2 * 1024**3 / seconds / 1e12:.2g}")
    return GPU("this processor", round(memory, 1), teraflops, dtype="float32")
