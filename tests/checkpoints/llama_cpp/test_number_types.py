"""Bytes of GGUF tensors: what is decoded is what was encoded, within what the type can hold."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from xtuner_plugins.checkpoints.errors import CheckpointError
from xtuner_plugins.checkpoints.io.tensors import MemoryTensor
from xtuner_plugins.checkpoints.llama_cpp.number_types import Encoded, check_available, choose_type


def encode(tensor, type, path):
    seen = []
    encoded = Encoded("x", MemoryTensor(tensor), type, seen.append)
    with open(path, "wb") as file:
        encoded.tofile(file)
    data = np.fromfile(path, np.uint8)
    assert data.nbytes == encoded.nbytes and sum(seen) == tensor.nbytes
    return torch.from_numpy(gguf.dequantize(data.reshape(tensor.shape[0], -1), type).copy())


# Relative to the largest number of a block of 32 (or 256): half a step of 8, 6 and 4 bits, and rounded scales.
@pytest.mark.parametrize(
    "type, error", [(Type.F32, 0), (Type.BF16, 2**-8), (Type.F16, 2**-10), (Type.Q8_0, 1 / 200), (Type.Q5_0, 1 / 14)]
)
def test_what_is_read_is_what_was_written(type, error, tmp_path):
    numbers = torch.randn(3000, 256, generator=torch.Generator().manual_seed(0))  # more than one block of the writer
    found = encode(numbers, type, tmp_path / "x")
    assert (found - numbers).abs().max() <= error * numbers.abs().max()


@pytest.mark.parametrize("type, error", [(Type.Q4_K, 0.10), (Type.Q6_K, 0.03)])
def test_k_quants_by_ggml(type, error, tmp_path):
    pytest.importorskip("xllamacpp")
    numbers = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    found = encode(numbers, type, tmp_path / "x")
    assert 0 < (found - numbers).square().mean().sqrt() < error


def test_types_of_tensors():
    assert choose_type("q4_k_m", "blk.3.ffn_up.weight", (512, 256), 3, 24) is Type.Q4_K
    assert choose_type("q4_k_m", "blk.0.attn_v.weight", (512, 256), 0, 24) is Type.Q6_K
    assert choose_type("q4_k_m", "blk.3.ffn_down.weight", (512, 256), 3, 24) is Type.Q4_K
    assert choose_type("q4_k_m", "output.weight", (512, 256), -1, 24) is Type.Q6_K
    assert choose_type("q4_k_m", "blk.3.ffn_up.weight", (512, 96), 3, 24) is Type.Q5_0
    assert choose_type("q8_0", "blk.3.ffn_up.weight", (512, 50), 3, 24) is Type.F16
    assert choose_type("q8_0", "blk.3.attn_norm.weight", (512,), 3, 24) is Type.F32
    assert choose_type("f16", "v.position_embd.weight", (1, 65, 64)) is Type.F32
    assert choose_type("bf16", "v.patch_embd.weight", (64, 3, 14, 14)) is Type.F32


@pytest.mark.parametrize("number, message", [(1e5, "float16 can't; choose --type bf16"), (float("nan"), "diverged")])
def test_numbers_that_do_not_fit(number, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        encode(torch.tensor([[number] * 32]), Type.F16, tmp_path / "x")


def test_k_quants_without_ggml(monkeypatch):
    from xtuner_plugins.checkpoints.llama_cpp import number_types

    monkeypatch.setattr(number_types.importlib.util, "find_spec", lambda name: None)
    number_types._ggml.cache_clear()
    with pytest.raises(CheckpointError, match="q4_k_m needs ggml.*llama-quantize"):
        check_available("q4_k_m")
    check_available("q8_0")
    number_types._ggml.cache_clear()
