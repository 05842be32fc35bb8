"""Merges LoRA layers into base weights: one layer at a time, in fp32, row block by row block.

PEFT's own layer does the arithmetic, so every option of ``LoraConfig`` that can be merged (rslora, dora, rank and alpha
patterns, a bias on B) is honored. The layer is rebuilt alone, under its real name, around one block of rows at a time:
``W + scaling * B A`` and DoRA's norms are computed row by row, so even a head of 150000 rows needs little memory.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import nn

from ..io.reader import CheckpointError
from ..io.tensors import BLOCK_BYTES, Computed, LazyTensor

ADAPTER_NAME = "default"
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"  # see ``token_rows``
# A live model has 'lora_A.default.weight', a PEFT directory 'lora_A.weight'; those of embeddings lack '.weight'.
_KEY = re.compile(
    r"(?P<layer>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    + re.escape(TOKEN_ROWS)
    + r")(?:\.default)?(?:\.(?P<leaf>weight|bias))?"
)
_PLAIN_OPTIONS = {"r", "lora_alpha", "lora_dropout", "target_modules", "task_type"}
_VARIANTS = {"use_rslora", "use_dora"}  # plain LoRA where they are False
# These initializations change the base weights, so the adapter wasn't trained on the base on disk.
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "orthogonal_base")


@dataclass
class PlainLora:
    """Settings of LoRA without any variant, which can be merged without importing PEFT (that takes seconds).

    Attributes:
        r: rank.
        lora_alpha: the scaling is ``lora_alpha / r``.
        options: all arguments of ``LoraConfig``.
    """

    r: int
    lora_alpha: float
    options: dict
    use_dora: ClassVar[bool] = False
    init_lora_weights: ClassVar[bool] = True
    rank_pattern: ClassVar[Mapping] = {}
    alpha_pattern: ClassVar[Mapping] = {}


def read_settings(settings):
    """``PlainLora`` if ``dict(type=LoraConfig, r=..., ...)`` names no variant, else the ``LoraConfig``; None for None.

    Raises:
        CheckpointError: an unknown option.
    """
    if not isinstance(settings, Mapping):
        return settings
    options = {k: settings[k] for k in settings.keys() if k != "type"}  # reading ``type`` would import PEFT
    for name, value in options.items():  # plain values of a config's own classes
        if isinstance(value, (list, tuple, Mapping)):
            options[name] = dict(value) if isinstance(value, Mapping) else list(value)
    sizes = [options.get("r"), options.get("lora_alpha")]
    chosen = {name for name, value in options.items() if not (name in _VARIANTS and value is False)}
    if chosen <= _PLAIN_OPTIONS and all(type(n) is int and n > 0 for n in sizes):
        return PlainLora(*sizes, options)
    from peft import LoraConfig

    try:
        return LoraConfig(**options)
    except TypeError as error:
        raise CheckpointError(f"the LoRA settings of the config: {error}") from None


def full_config(config):
    """The ``peft.LoraConfig`` of a result of ``read_settings``."""
    if not isinstance(config, PlainLora):
        return config
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


def merged_weight(
    base: LazyTensor, parts: Mapping[str, LazyTensor], config, layer: str, *, bias: LazyTensor | None = None
) -> LazyTensor:
    """The merged weight of a layer: lazy, fp32.

    Args:
        base: weight of the layer, ``[out, in]`` (``[rows, width]`` for an embedding).
        parts: adapter tensors by ``lora_A.weight``, ``lora_B.weight`` and so on.
        config: the ``peft.LoraConfig`` that they were trained with.
        layer: name of the layer inside its model; rank and alpha patterns match it.
        bias: the layer's bias, which PEFT's layer needs beside the weight; None for none.

    Raises:
        CheckpointError: shapes that don't fit the base or the config's rank.
    """
    rank = _check_shapes(base, parts, config, layer)
    if set(parts) == {"lora_A.weight", "lora_B.weight"} and not config.use_dora and len(base.shape) == 2:
        plain = isinstance(config, PlainLora)
        return _Plain(base, parts, config.lora_alpha / rank if plain else _scaling(config, layer, rank))
    if len(base.shape) == 4 or ("lora_embedding_A" in parts and "lora_magnitude_vector.weight" in parts):
        # Rows depend on one another: convolutions, and embeddings under DoRA (one magnitude per column).
        whole = cache(lambda: _merge_rows(base, parts, config, layer, 0, base.shape[0], bias)[0])
        return Computed(lambda start, stop: whole()[start:stop], torch.float32, base.shape)
    limit = max(1, BLOCK_BYTES // (base.shape[1] * 4))

    def make_rows(start: int, stop: int) -> torch.Tensor:
        blocks = ((a, min(a + limit, stop)) for a in range(start, stop, limit))
        return torch.cat([_merge_rows(base, parts, config, layer, a, b, bias)[0] for a, b in blocks])

    return Computed(make_rows, torch.float32, base.shape)


class _Plain(LazyTensor):
    """``W + scaling * B A`` without any variant, fused into one pass over the rows."""

    dtype = torch.float32

    def __init__(self, base: LazyTensor, parts: Mapping[str, LazyTensor], scaling: float):
        self._base, self._b, self._scaling = base, parts["lora_B.weight"], scaling
        self._a, self.shape = parts["lora_A.weight"], base.shape
        self._factor_a: torch.Tensor | None = None

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        if self._factor_a is None:  # a few MB
            self._factor_a = self._a.read().float()
        width = self.shape[1]
        first, last = start // width, -(-stop // width)
        rows = _float_rows(self._base, first, last)
        rows.addmm_(_float_rows(self._b, first, last), self._factor_a, alpha=self._scaling)
        return rows.view(-1)[start - first * width : stop - first * width]


def _float_rows(tensor: LazyTensor, first: int, last: int) -> torch.Tensor:
    width = tensor.shape[1]
    block = tensor.read_flat(first * width, last * width)
    return block.float().view(last - first, width)


def _scaling(config, layer: str, rank: int) -> float:
    """PEFT's own scaling of a layer, taken from such a layer."""
    parts = {"lora_A.weight": torch.zeros(rank, 1), "lora_B.weight": torch.zeros(1, rank)}
    return float(_rebuild(layer, nn.Linear(1, 1), parts, config).scaling[ADAPTER_NAME])


def merged_bias(
    base: LazyTensor, parts: Mapping[str, LazyTensor], config, layer: str, weight: LazyTensor
) -> LazyTensor:
    """The merged bias of a layer trained with ``lora_bias=True``: lazy, fp32."""
    return Computed(
        lambda start, stop: _merge_rows(weight, parts, config, layer, start, stop, base)[1], torch.float32, base.shape
    )


def _check_shapes(base, parts, config, layer) -> int:
    """Checks that adapter, base and config fit each other; returns the layer's rank."""
    embedding = "lora_embedding_A" in parts
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    if a not in parts or b not in parts:
        raise CheckpointError(f"{layer}: the adapter has only {', '.join(sorted(parts))}; {a} and {b} are needed")
    out_features, in_features = base.shape[:2]
    want = (in_features, out_features) if not embedding else (out_features, in_features)
    rank = _by_pattern(config.rank_pattern, layer, config.r)
    if parts[a].shape[1] != want[0] or parts[b].shape[0] != want[1]:
        raise CheckpointError(
            f"{layer}: the adapter ({list(parts[a].shape)}, {list(parts[b].shape)}) doesn't fit the base's "
            f"{list(base.shape)}: the checkpoint belongs to another base"
        )
    if parts[a].shape[0] != rank:
        raise CheckpointError(
            f"{layer}: the adapter has rank {parts[a].shape[0]}, the config says r={rank}; give the config that the "
            "checkpoint was trained with"
        )
    return rank


def _by_pattern(patterns: Mapping[str, int], layer: str, default: int) -> int:
    """The rank or alpha of a layer: from the pattern that matches it, else the default."""
    if not patterns:
        return default
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), layer), default)


def _single(config, layer: str):
    """The config for one layer alone: without the options that choose layers, with those that shape them."""
    from peft import LoraConfig

    config = copy.deepcopy(full_config(config))
    assert isinstance(config, LoraConfig), type(config)
    config.target_modules = [layer]
    config.exclude_modules = config.modules_to_save = config.layers_to_transform = config.layers_pattern = None
    config.target_parameters = config.trainable_token_indices = None
    config.layer_replication = None
    config.r = _by_pattern(config.rank_pattern, layer, config.r)
    config.lora_alpha = _by_pattern(config.alpha_pattern, layer, config.lora_alpha)
    config.rank_pattern, config.alpha_pattern = {}, {}
    config.init_lora_weights = False
    config.inference_mode = True
    config.lora_dropout = 0.0
    return config


def _rebuild(layer: str, module: nn.Module, parts: Mapping[str, torch.Tensor], config):
    """PEFT's layer around ``module``, under the name that it has in the model."""
    from peft import inject_adapter_in_model

    root = nn.Module()
    owner = root
    *path, leaf = layer.split(".")
    for name in path:
        owner.add_module(name, nn.Module())
        owner = owner.get_submodule(name)
    owner.add_module(leaf, module)
    inject_adapter_in_model(_single(config, layer), root, adapter_name=ADAPTER_NAME)
    wrapped = root.get_submodule(layer)
    fill_adapter(wrapped, parts, layer)
    return wrapped


def fill_adapter(wrapped: nn.Module, parts: Mapping[str, torch.Tensor], layer: str) -> None:
    """Puts adapter tensors into PEFT's layer, in fp32.

    Args:
        wrapped: PEFT's layer.
        parts: by ``lora_A.weight`` and so on.
        layer: name of the layer, for errors.

    Raises:
        CheckpointError: a shape that the config doesn't make.
    """
    device = wrapped.get_base_layer().weight.device
    for part, value in parts.items():
        kind, _, leaf = part.partition(".")
        holder = getattr(wrapped, kind)[ADAPTER_NAME]
        target = getattr(holder, leaf) if leaf else holder
        if target.shape != value.shape:
            raise CheckpointError(f"{layer}.{part} is {list(value.shape)}, the config makes it {list(target.shape)}")
        target.data = value.float().to(device)


def _merge_rows(base, parts, config, layer, start, stop, bias):
    """Rows ``[start, stop)`` of a layer merged by PEFT: fp32 weight rows and bias rows (None without a bias)."""
    num_rows, weight = stop - start, base.rows(start, stop).read().float()
    whole = {"lora_A.weight", "lora_embedding_B"} if num_rows < base.shape[0] else set(parts)
    loaded = {part: tensor.read() for part, tensor in parts.items() if part in whole or part == "lora_embedding_A"}
    loaded.update({part: t.rows(start, stop).read() for part, t in parts.items() if part not in loaded})
    if "lora_embedding_A" in parts:
        loaded["lora_embedding_A"] = loaded["lora_embedding_A"][:, start:stop]  # [rank, rows]
        module: nn.Module = nn.Embedding(num_rows, weight.shape[1], device="meta")
    elif len(base.shape) == 4:
        out, channels, *kernel = base.shape
        module = nn.Conv2d(channels, out, kernel, stride=kernel, bias=bias is not None, device="meta")
    else:
        module = nn.Linear(weight.shape[1], num_rows, bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.rows(start, stop).read().float(), requires_grad=False)
    wrapped = _rebuild(layer, module, loaded, config)
    with torch.no_grad():
        wrapped.merge()
    merged = wrapped.get_base_layer()
    return merged.weight.data, None if bias is None else merged.bias.data
