"""Which dtype `auto` takes on each kind of device, and what is said of it."""

import pytest
import torch

from xtuner_plugins import dtypes

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
OFFER = "; this CPU also computes in bfloat16, mostly faster: --dtype bfloat16"


def test_auto_takes_bfloat16_only_where_the_device_computes_in_it(monkeypatch):
    assert dtypes.resolve_dtype("auto") == torch.float32 and dtypes.resolve_dtype("float16") == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_it, dtype in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has_it: has)
        assert dtypes.resolve_dtype("auto") == dtypes.resolve_dtype("auto", CUDA) == dtype
        assert dtypes.resolve_dtype("auto", CPU) == torch.float32
    with pytest.raises(ValueError, match="dtype='int4' is unknown; it is one of: auto, bfloat16"):
        dtypes.resolve_dtype("int4")


def test_what_is_told(monkeypatch):
    for flags, name, dtype, device, said in (
        ({"avx512_bf16": True, "amx_bf16": False}, "auto", torch.float32, CPU, f"float32 on cpu (auto){OFFER}"),
        ({"amx_bf16": True}, "auto", torch.float32, CPU, f"float32 on cpu (auto){OFFER}"),
        ({"architecture": "aarch64"}, "auto", torch.float32, CPU, "float32 on cpu (auto)"),
        ({"amx_bf16": True}, "float32", torch.float32, CPU, "float32 on cpu"),
        ({"amx_bf16": True}, "auto", torch.bfloat16, CUDA, "bfloat16 on cuda (auto)"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert dtypes.describe_dtype(name, dtype, device, "--dtype ") == said
