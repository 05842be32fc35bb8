"""Number types of GGUF files: which type a tensor gets, and its bytes.

``q8_0`` and the plain types are encoded by the ``gguf`` library. The K-quants of ``q4_k_m`` are encoded by ggml itself,
through the C function ``ggml_quantize_chunk`` in the binary of ``xllamacpp``.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from ..errors import CheckpointError
from ..io.tensors import LazyTensor, Scratch

# Name for the command line, llama.cpp's number for the whole file, type of matrices.
TYPES: dict[str, tuple[gguf.LlamaFileType, Type]] = {
    "f32": (gguf.LlamaFileType.ALL_F32, Type.F32),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, Type.F16),
    "bf16": (gguf.LlamaFileType.MOSTLY_BF16, Type.BF16),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "q4_k_m": (gguf.LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K),
}
PLAIN = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
K_QUANTS = (Type.Q4_K, Type.Q6_K)
# For rows whose length isn't a multiple of a type's block: the next type with smaller blocks, at least as exact.
_SMALLER_BLOCKS = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0, Type.Q8_0: Type.F16, Type.Q5_0: Type.F16}


def choose_type(kind: str, name: str, shape: tuple[int, ...], layer: int = 0, num_layers: int = 0) -> Type:
    """The type of one tensor.

    Vectors, norms and position embeddings stay in float32. ``q4_k_m`` keeps the head, and values and down projections
    of the first and last eighths of the layers and of every third one between, in 6 bits, as llama.cpp's own does.

    Args:
        kind: one of ``TYPES``.
        name: of the tensor in the file.
        shape: row-major.
        layer, num_layers: which layer it is in, and of how many.
    """
    wanted = TYPES[kind][1]
    if len(shape) < 2 or name.endswith("norm.weight") or name.startswith(("v.position_embd", "v.class_embd")):
        return Type.F32
    if name.startswith("v.patch_embd"):
        return Type.F16 if kind == "f16" else Type.F32
    if wanted is Type.Q4_K and (name == "output.weight" or _wants_more_bits(name, layer, num_layers)):
        wanted = Type.Q6_K
    while shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = _SMALLER_BLOCKS[wanted]
    return wanted


def _wants_more_bits(name: str, layer: int, num_layers: int) -> bool:
    eighth = num_layers // 8
    chosen = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    return chosen and name.endswith(("attn_v.weight", "ffn_down.weight"))


def check_available(kind: str) -> None:
    """Whether this kind of file can be encoded here.

    Raises:
        CheckpointError: ``q4_k_m`` without a binary that encodes it.
    """
    if TYPES[kind][1] in K_QUANTS:
        _ggml()


class Encoded:
    """A tensor as the bytes of a GGUF file; what the library's writer needs of an array.

    Args:
        name: of the tensor, for messages.
        tensor: the numbers.
        type: to encode them in.
        advance: called with the number of source bytes after each block.
    """

    def __init__(self, name: str, tensor: LazyTensor, type: Type, advance):
        self.name, self.tensor, self.type, self._advance = name, tensor, type, advance
        block, num_bytes = gguf.GGML_QUANT_SIZES[type]
        self.nbytes = tensor.numel // block * num_bytes

    def tofile(self, file: BinaryIO) -> None:
        """Writes it block by block; blocks hold whole rows."""
        width = self.tensor.shape[-1]
        for start, stop in self._blocks(width):
            values = self.tensor.read_flat(start, stop, Scratch()).float().numpy().reshape(-1, width)
            file.write(self._encode(values).tobytes())
            self._advance((stop - start) * self.tensor.dtype.itemsize)

    def _blocks(self, width: int) -> Iterator[tuple[int, int]]:
        rows = max(1, 2**19 // width)
        for start in range(0, self.tensor.numel, rows * width):
            yield start, min(start + rows * width, self.tensor.numel)

    def _encode(self, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.name} holds NaN or infinity, so training diverged; take an earlier export")
        largest = np.abs(values).max(initial=0)
        if self.type is not Type.F32 and self.type is not Type.BF16 and largest > np.finfo(np.float16).max:
            raise CheckpointError(f"{self.name} holds {largest:.3g}, which float16 can't; choose --type bf16 or f32")
        return _quantize_by_ggml(values, self.type) if self.type in K_QUANTS else gguf.quantize(values, self.type)


def _quantize_by_ggml(values: np.ndarray, type: Type) -> np.ndarray:
    block, num_bytes = gguf.GGML_QUANT_SIZES[type]
    values = np.ascontiguousarray(values, dtype=np.float32)
    out = np.empty(values.size // block * num_bytes, dtype=np.uint8)
    rows, width = values.shape
    written = _ggml().ggml_quantize_chunk(int(type), values.ctypes.data, out.ctypes.data, 0, rows, width, None)
    assert written == out.nbytes, (written, out.nbytes)
    return out


@functools.cache
def _ggml() -> ctypes.CDLL:
    """The binary of xllamacpp with the signature of the one function that is called in it."""
    spec = importlib.util.find_spec("xllamacpp")
    files = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) if spec and spec.origin else []
    function = None
    if files:
        library = ctypes.CDLL(str(files[0]))
        function = getattr(library, "ggml_quantize_chunk", None)
    if function is None:
        raise CheckpointError(
            "q4_k_m needs ggml, which comes with xllamacpp: pip install 'xtuner-plugins[llama-cpp]'; or write f16 and "
            "quantize that with llama.cpp's own llama-quantize"
        )
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return library
