"""Merges LoRA into base weights: ``W + s B A`` and DoRA's row norms, block of rows by block of rows, in float32.

``s`` is ``alpha / r``, or ``alpha / sqrt(r)`` under rsLoRA; DoRA then gives each row of the sum the length that it has
learned (https://arxiv.org/abs/2402.09353). PEFT computes the same, but takes seconds to import and merges whole models.

Rows of single tokens may train beside LoRA (PEFT's ``trainable_token_indices``, a list for the input embedding or
``{'embed_tokens': [...], 'lm_head': [...]}``). PEFT holds them next to the frozen matrix::

    embed_tokens.token_adapter.trainable_tokens_delta.default    [n, D]    a PEFT directory leaves .default out
    embed_tokens.token_adapter.base_layer.weight                 [V, D]    the base has it

Despite its name, ``trainable_tokens_delta`` holds the trained rows, not differences.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from .lazy import LazyTensor
from .reading import CheckpointError
from .record import plain

ADAPTER_NAME = "default"
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
BASE_LAYER, ORIGINAL = ".token_adapter.base_layer.", ".token_adapter.trainable_tokens_original"
_EMBEDDINGS = ("embed_tokens", "embeddings", "wte", "tok_embeddings")
# A live model has 'lora_A.default.weight', a PEFT directory 'lora_A.weight'.
_KEY = re.compile(
    rf"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|{re.escape(TOKEN_ROWS)})"
    r"(?:\.default)?(\.weight|\.bias)?"
)
A, B, SIZE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"
# Options that choose what trains, or how; merging doesn't depend on them.
_OF_TRAINING = """lora_dropout target_modules exclude_modules layers_to_transform layers_pattern modules_to_save bias
    task_type inference_mode runtime_config""".split()
# These initializations change the base weights, so the adapter isn't one of the base on disk.
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "orthogonal_base")


@dataclass
class Lora:
    """The settings of ``peft.LoraConfig`` that decide what is merged, with its defaults; ``options`` are all given."""

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    trainable_token_indices: Any = None
    options: Mapping[str, Any] | None = None

    @property
    def scale(self) -> float:
        """The factor of ``B A``."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


def read_settings(settings: Mapping | None) -> Lora | None:
    """The settings in ``dict(type=LoraConfig, r=..., ...)``; None for None.

    Raises:
        CheckpointError: an option whose adapters would need another sum, or an initialization that changes the base.
    """
    if settings is None:
        return None
    options = {name: value for name, value in plain(settings).items() if name != "type"}
    known = {each.name for each in fields(Lora)} - {"options"}
    if unknown := [name for name, value in options.items() if name not in (*known, *_OF_TRAINING) and value]:
        raise CheckpointError(f"LoRA settings: {', '.join(unknown)} can't be merged; leave it out")
    if str(start := options.get("init_lora_weights")).lower().startswith(_REWRITES_BASE):
        raise CheckpointError(f"LoRA settings: init_lora_weights={start!r} changes the base weights; leave it out")
    found = Lora(**{name: value for name, value in options.items() if name in known}, options=options)
    if not isinstance(found.lora_alpha, (int, float)) or type(found.r) is not int or found.r < 1:
        raise CheckpointError(f"LoRA settings: r={found.r!r} and lora_alpha={found.lora_alpha!r} give no scale")
    return found


def split_key(name: str) -> tuple[str, str] | None:
    """Layer and part (such as ``lora_A.weight``, or ``TOKEN_ROWS``) of an adapter tensor; None for any other tensor."""
    match = _KEY.fullmatch(name)
    return match and (match[1], match[2] + (match[3] or ""))


def merged_weight(base: LazyTensor, parts: Mapping[str, LazyTensor], config: Lora, layer: str) -> LazyTensor:
    """The merged weight of the linear layer called ``layer``, lazy, float32 ``[out, in]``.

    Args:
        base: its weight, ``[out, in]``.
        parts: adapter tensors by ``lora_A.weight`` ``[r, in]``, ``lora_B.weight`` ``[out, r]`` and, for DoRA,
            ``lora_magnitude_vector.weight`` ``[out]``.
        config: the settings that they were trained with.
        layer: for messages.

    Raises:
        CheckpointError: no linear layer, or shapes that don't fit the base or the config.
    """
    if len(base.shape) != 2 or not parts.keys() <= {A, B, SIZE}:
        raise CheckpointError(f"{layer} is no linear layer; train rows of an embedding with trainable_token_indices")
    (rows, columns), held = base.shape, {name: list(tensor.shape) for name, tensor in parts.items()}
    needed = {A: [config.r, columns], B: [rows, config.r], **({SIZE: [rows]} if config.use_dora else {})}
    if held != needed:
        told = f"the base {base}, r={config.r} and use_dora={config.use_dora} need {needed}"
        raise CheckpointError(f"{layer}: its adapter is {held}; {told}: checkpoint, settings and base don't fit")

    def make(start: int, stop: int) -> torch.Tensor:
        rows, b, a = base.read(start, stop), parts[B].read(start, stop), parts[A].read()
        rows = torch.addmm(rows.float(), b.float(), a.float(), alpha=config.scale)
        if SIZE in parts:
            rows *= (parts[SIZE].read(start, stop).float() / rows.norm(dim=1))[:, None]
        return rows

    return LazyTensor(torch.float32, base.shape, make)


def token_indices(config: Lora | None, layer: str, where: str) -> list[int]:
    """The rows of a layer (by its name inside its model) that LoRA settings train; `CheckpointError` for none."""
    named = getattr(config, "trainable_token_indices", None)
    by_layer = named if isinstance(named, Mapping) else dict.fromkeys(_EMBEDDINGS, named)
    found = next((rows for name, rows in by_layer.items() if f".{layer}".endswith(f".{name}")), None)
    if found is None:
        told = f"but the LoRA settings name none (trainable_token_indices={named})"
        raise CheckpointError(f"{where} holds trained rows of {layer}, {told}")
    return [int(row) for row in found]


def with_rows(base: LazyTensor, rows: LazyTensor, indices: list[int], name: str) -> LazyTensor:
    """A matrix ``[V, D]`` with the rows at n different indices replaced by trained ones ``[n, D]``, lazily.

    Raises:
        CheckpointError: shapes or indices that don't fit; the message begins with ``name``.
    """
    valid = set(indices) & set(range(base.shape[0]))
    if len(valid) != len(indices) or rows.shape != (len(indices), *base.shape[1:]):
        raise CheckpointError(f"{name}: the trained rows {rows} aren't those of {len(valid)} different rows of {base}")
    dtype = torch.promote_types(base.dtype, rows.dtype)

    def make(start: int, stop: int) -> torch.Tensor:
        block = base.read(start, stop).to(dtype)
        for n, index in enumerate(indices):
            if start <= index < stop:
                block[index - start] = rows.read(n, n + 1)[0]
        return block

    return LazyTensor(dtype, base.shape, make)
