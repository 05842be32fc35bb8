"""Which dtype `auto` takes on each kind of device, and what is said of it."""

import pytest
import torch

from xtuner_plugins import dtypes

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
OFFER = "; this CPU also computes in bfloat16, mostly faster: --dtype bfloat16"


@pytest.mark.parametrize("device", [None, CUDA])
@pytest.mark.parametrize("emulated, dtype", [(True, torch.float16), (False, torch.bfloat16)])
def test_auto_takes_bfloat16_only_where_the_device_computes_in_it(monkeypatch, device, emulated, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    assert dtypes.resolve_dtype("auto", device) == dtype
    assert dtypes.resolve_dtype("auto", CPU) == torch.float32 and dtypes.resolve_dtype("bfloat16") == torch.bfloat16


def test_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dtypes.resolve_dtype("auto") == torch.float32 and dtypes.resolve_dtype("float16") == torch.float16
    with pytest.raises(ValueError, match="dtype='int4' is unknown; it is one of: auto, bfloat16"):
        dtypes.resolve_dtype("int4")


@pytest.mark.parametrize(
    "capabilities, name, dtype, device, said",
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "auto", torch.float32, CPU, f"float32 on cpu (auto){OFFER}"),
        ({"avx512_bf16": False, "amx_bf16": True}, "auto", torch.float32, CPU, f"float32 on cpu (auto){OFFER}"),
        ({"architecture": "aarch64"}, "auto", torch.float32, CPU, "float32 on cpu (auto)"),
        ({"amx_bf16": True}, "float32", torch.float32, CPU, "float32 on cpu"),
        ({"amx_bf16": True}, "bfloat16", torch.bfloat16, CPU, "bfloat16 on cpu"),
        ({"amx_bf16": True}, "auto", torch.bfloat16, CUDA, "bfloat16 on cuda (auto)"),
    ],
)
def test_what_is_told(monkeypatch, capabilities, name, dtype, device, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert dtypes.describe_dtype(name, dtype, device, "--dtype ") == said


def test_the_flags_are_those_of_the_kernel():
    """On x86 Linux both sources know AVX512-BF16 and AMX."""
    try:
        flags = open("/proc/cpuinfo").read().split()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    if "flags" not in flags:
        pytest.skip("no x86")
    assert dtypes.cpu_computes_in_bfloat16() == bool({"avx512_bf16", "amx_bf16"} & set(flags))
