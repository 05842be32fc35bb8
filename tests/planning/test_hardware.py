import pytest

from xtuner_plugins.planning.hardware import GPUS, gpu_of_device


def test_faster_cards_have_more_memory_and_a_name():
    assert all(name == gpu.name for name, gpu in GPUS.items())
    ordered = sorted(GPUS.values(), key=lambda gpu: gpu.teraflops)
    assert [gpu.name for gpu in ordered] == ["T4", "4090", "A100", "L40S", "H200", "H100"]
    assert {gpu.name for gpu in ordered if gpu.dtype == "float16"} == {"T4"}  # without bfloat16


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("A100-PCIE-40GB", "A100"),
        ("NVIDIA A800 80GB PCIe", "A100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        # Another peak than the card whose name is in theirs.
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA T400", None),
        ("NVIDIA L40", None),
    ],
)
def test_a_device_is_the_card_whose_peak_it_has(device, gpu):
    found = gpu_of_device(device)
    assert (found and found.name) == gpu
