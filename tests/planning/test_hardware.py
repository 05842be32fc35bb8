from xtuner_plugins.planning.hardware import GPUS


def test_faster_cards_have_more_memory_and_a_name():
    assert all(name == gpu.name for name, gpu in GPUS.items())
    ordered = sorted(GPUS.values(), key=lambda gpu: gpu.teraflops)
    assert [gpu.name for gpu in ordered] == ["T4", "4090", "A100", "H100"]
    assert {gpu.name for gpu in ordered if gpu.dtype == "float16"} == {"T4"}  # without bfloat16
