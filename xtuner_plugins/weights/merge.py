"""Merges LoRA into base weights: ``W + s B A`` and DoRA's row norms, block of rows by block of rows, in float32.

Only linear layers are merged. ``s`` is ``alpha / r``, or ``alpha / sqrt(r)`` under rsLoRA; DoRA then gives each row of
the sum the length that it has learned (https://arxiv.org/abs/2402.09353). PEFT computes the same, but takes seconds to
import, and merges whole models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from .lazy import LazyTensor
from .reading import CheckpointError

ADAPTER_NAME = "default"
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"  # see ``token_rows``
# A live model has 'lora_A.default.weight', a PEFT directory 'lora_A.weight'; those of embeddings lack '.weight'.
_KEY = re.compile(
    r"(?P<layer>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    + re.escape(TOKEN_ROWS)
    + r")(?:\.default)?(?:\.(?P<leaf>weight|bias))?"
)
# Options that choose what trains, or how; merging doesn't depend on them.
_OF_TRAINING = """lora_dropout target_modules exclude_modules layers_to_transform layers_pattern modules_to_save bias
    task_type inference_mode runtime_config""".split()
# These initializations change the base weights, so the adapter wasn't trained on the base on disk.
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "orthogonal_base")


@dataclass
class Lora:
    """The settings of ``peft.LoraConfig`` that decide what is merged, with PEFT's defaults.

    Attributes:
        options: all arguments of ``LoraConfig``.
    """

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init_lora_weights: bool | str = True
    trainable_token_indices: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


def read_settings(settings: Mapping | None) -> Lora | None:
    """The settings in ``dict(type=LoraConfig, r=..., ...)``; None for None.

    Raises:
        CheckpointError: an option that isn't known here: its adapters may need another sum.
    """
    if settings is None:
        return None
    options = {key: dict.__getitem__(settings, key) for key in settings if key != "type"}  # `type` would import PEFT
    for name, value in options.items():  # plain values of a config's own classes
        if isinstance(value, (list, tuple, Mapping)):
            options[name] = dict(value) if isinstance(value, Mapping) else list(value)
    known = {each.name for each in fields(Lora)} - {"options"}
    unknown = [name for name, value in options.items() if name not in (*known, *_OF_TRAINING) and value]
    if unknown:
        raise CheckpointError(f"the LoRA settings of the config: {', '.join(unknown)} can't be merged here")
    return Lora(**{name: value for name, value in options.items() if name in known}, options=options)


def full_config(config: Lora):
    """The ``peft.LoraConfig`` of a result of ``read_settings``."""
    from peft import LoraConfig

    return LoraConfig(**config.options)


def split_key(name: str) -> tuple[str, str] | None:
    """Layer and part (such as ``lora_A.weight``, or ``TOKEN_ROWS``) of an adapter tensor; None for any other tensor."""
    match = _KEY.fullmatch(name)
    if match is None:
        return None
    return match["layer"], match["kind"] + (f".{match['leaf']}" if match["leaf"] else "")


def check_mergeable(config, where: str) -> None:
    """Raises ``CheckpointError`` for initializations that rewrite the base weights."""
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(_REWRITES_BASE):
        raise CheckpointError(
            f"{where}: init_lora_weights={init!r} changes the base weights when training starts, so the adapter "
            "can't be merged into the base on disk; train with the default initialization"
        )


def merged_weight(base: LazyTensor, parts: Mapping[str, LazyTensor], config, layer: str) -> LazyTensor:
    """The merged weight of a linear layer, lazy, float32 ``[out, in]``.

    Args:
        base: weight of the layer, ``[out, in]``.
        parts: adapter tensors by ``lora_A.weight`` ``[r, in]``, ``lora_B.weight`` ``[out, r]`` and, for DoRA,
            ``lora_magnitude_vector.weight`` ``[out]``.
        config: the settings that they were trained with, a `Lora` or ``peft.LoraConfig``.
        layer: name of the layer inside its model; rank and alpha patterns match it.

    Raises:
        CheckpointError: no linear layer, or shapes that don't fit the base or the config's rank.
    """
    _check_shapes(base, parts, config, layer)
    size, factor = parts.get("lora_magnitude_vector.weight"), scaling(config, layer)

    def make(start: int, stop: int) -> torch.Tensor:
        rows, b, a = base.read(start, stop), parts["lora_B.weight"].read(start, stop), parts["lora_A.weight"].read()
        rows = torch.addmm(rows.float(), b.float(), a.float(), alpha=factor)
        return rows if size is None else rows * (size.read(start, stop).float() / rows.norm(dim=1))[:, None]

    return LazyTensor(torch.float32, base.shape, make)


def merged_bias(base: LazyTensor, parts: Mapping[str, LazyTensor], config, layer: str) -> LazyTensor:
    """The merged bias of a layer trained with ``lora_bias=True``: lazy, float32."""
    added, factor = parts["lora_B.bias"], scaling(config, layer)

    def make(start: int, stop: int) -> torch.Tensor:
        return base.read(start, stop).float() + factor * added.read(start, stop).float()

    return LazyTensor(torch.float32, base.shape, make)


def scaling(config, layer: str) -> float:
    """The factor of ``B A`` in a layer."""
    rank = _by_pattern(config.rank_pattern, layer, config.r)
    return _by_pattern(config.alpha_pattern, layer, config.lora_alpha) / (rank**0.5 if config.use_rslora else rank)


def _check_shapes(base, parts, config, layer) -> None:
    """Checks that adapter, base and config fit each other."""
    a, b = (parts.get(name) for name in ("lora_A.weight", "lora_B.weight"))
    if len(base.shape) != 2 or any(name.startswith("lora_embedding") for name in parts):
        raise CheckpointError(
            f"{layer} is no linear layer, and LoRA is merged into those alone; train rows of an embedding with "
            "trainable_token_indices"
        )
    if a is None or b is None:
        raise CheckpointError(f"{layer}: the adapter has only {', '.join(sorted(parts))}; lora_A and B are needed")
    rank, dora = _by_pattern(config.rank_pattern, layer, config.r), "lora_magnitude_vector.weight" in parts
    if (b.shape[0], a.shape[1]) != base.shape:
        raise CheckpointError(
            f"{layer}: the adapter (A {a}, B {b}) doesn't fit the base's {base}: the checkpoint belongs to another base"
        )
    if a.shape[0] != rank or dora != bool(config.use_dora):
        raise CheckpointError(
            f"{layer}: the adapter has rank {a.shape[0]} and {'' if dora else 'no '}magnitudes of DoRA, the config "
            f"says r={rank} and use_dora={config.use_dora}; give the config that the checkpoint was trained with"
        )


def _by_pattern(patterns: Mapping[str, float], layer: str, default: float) -> float:
    """The rank or alpha of a layer: from the pattern that matches it, else the default."""
    if not patterns:
        return default
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), layer), default)


def fill_adapter(wrapped: nn.Module, parts: Mapping[str, torch.Tensor]) -> None:
    """Puts adapter tensors (by ``lora_A.weight`` and so on) into PEFT's layer, in fp32; shapes were checked before."""
    for part, value in parts.items():
        kind, _, leaf = part.partition(".")
        target = getattr(wrapped, kind)[ADAPTER_NAME]
        target = getattr(target, leaf) if leaf else target
        target.data = value.float().to(wrapped.get_base_layer().weight.device)
