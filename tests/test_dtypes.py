"""Which dtype `auto` takes on each kind of device, and what is said of it."""

import pytest
import torch

from xtuner_plugins import dtypes

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_auto_takes_bfloat16_only_where_the_device_computes_in_it(monkeypatch):
    assert dtypes.resolve_dtype("auto") == torch.float32 and dtypes.resolve_dtype("float16") == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_it, dtype in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has_it: has)
        assert dtypes.resolve_dtype("auto") == dtypes.resolve_dtype("auto", CUDA) == dtype
        assert dtypes.resolve_dtype("auto", CPU) == torch.float32
    with pytest.raises(ValueError, match="dtype='int4' is unknown; it is one of: auto, bfloat16"):
        dtypes.resolve_dtype("int4")
    assert dtypes.describe_dtype("auto", torch.float32, CPU) == "float32 on cpu (auto)"
    assert dtypes.describe_dtype("bfloat16", torch.bfloat16, CUDA) == "bfloat16 on cuda"
