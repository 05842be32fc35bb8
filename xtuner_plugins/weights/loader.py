"""Loads model directories into the hub classes, tensor by tensor; runs no code from a directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from . import model_view
from .lazy import LazyTensor
from .reading import CheckpointError, read_json
from .tokenizer_files import load_tokenizer  # noqa: F401  found here, too, beside `load_model`


@dataclass(frozen=True)
class LoadReport:
    """What was compared or loaded: tensors, and numbers in them."""

    num_tensors: int
    num_parameters: int


def read_config(directory: str | Path):
    """``config.json`` of a model directory of any format as our ``InternVLChatConfig``.

    Raises:
        CheckpointError: no such directory, or of no known format.
    """
    return config_from_fields(model_view.open_config(directory)[2], directory)


def config_from_fields(fields: Mapping, where: str | Path):
    """The hub's config of official fields; ``CheckpointError``, with ``where`` in it, for fields that are refused."""
    from ..hub.configuration_internvl_chat import InternVLChatConfig

    for key in ("use_backbone_lora", "use_llm_lora"):
        if fields.get(key):
            raise CheckpointError(f"{where}: {key} is {fields[key]}, so its adapters are not merged; merge them first")
    try:
        return InternVLChatConfig(**{k: v for k, v in fields.items() if k not in ("auto_map", "model_type")})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}/config.json: {error}") from None


def empty_model(config) -> nn.Module:
    """The hub model with parameters on the meta device and real buffers.

    Args:
        config: an ``InternVLChatConfig``.
    """
    from accelerate import init_empty_weights

    from ..hub.modeling_internvl_chat import InternVLChatModel

    with init_empty_weights(include_buffers=False):
        return InternVLChatModel(config)


def compare(model: nn.Module, tensors: Mapping[str, LazyTensor], what: str) -> LoadReport:
    """Compares names and shapes of a model's persistent tensors with those of files.

    Args:
        model: may be on the meta device.
        tensors: under our names.
        what: to call them in messages.

    Raises:
        CheckpointError: what is missing, unexpected or of another shape.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = {name: tensor.shape for name, tensor in tensors.items()}
    both = sorted(own.keys() & held.keys())
    wrong = {
        "missing": sorted(own.keys() - held.keys()),
        "unexpected": sorted(held.keys() - own.keys()),
        "of another shape": [
            f"{n} is {list(held[n])}, the model has {list(own[n])}" for n in both if own[n] != held[n]
        ],
    }
    lines = [
        f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in wrong.items()
        if names
    ]
    if any(".lora_" in name or ".base_layer." in name for name in wrong["unexpected"]):
        lines.append("these are unmerged adapters, not a model: export them with tools/convert_to_official.py")
    if lines:
        raise CheckpointError(f"{what}: {'; '.join(lines)}")
    return LoadReport(len(own), sum(map(math.prod, own.values())))


def check_model(config: Mapping, tensors: Mapping[str, LazyTensor], what: str) -> None:
    """Compares tensors with an empty hub model of a ``config`` in official fields; else as ``compare``."""
    from ..hub.modeling_internvl_chat import InternVLChatModel

    with torch.device("meta"):  # only this thread's; accelerate's would also affect a merge in another thread
        model = InternVLChatModel(config_from_fields(config, what))
    compare(model, tensors, what)


def fill(
    model: nn.Module,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: torch.dtype | None,
    device="cpu",
    filled: Callable[[nn.Module, str], None] = lambda model, name: None,
) -> None:
    """Reads every parameter and persistent buffer of a model, one at a time.

    Args:
        model: its tensors may be on the meta device, or real.
        tensors: at least every name of the model's state dict.
        dtype: to store in; None keeps each tensor's own dtype.
        device: where to put them.
        filled: called with (model, name of a submodule) as soon as the submodule's own tensors are filled, before the
            next ones are read; it may replace them (by 4 bits, by this rank's share) to save memory.
    """
    for owner_name, names in groupby(model.state_dict().keys(), key=lambda name: name.rpartition(".")[0]):
        owner = model.get_submodule(owner_name)
        for name in names:
            leaf = name.rpartition(".")[2]
            value = tensors[name].read()
            if value.is_floating_point() and not value.isfinite().all():
                raise CheckpointError(f"{name} holds NaN or infinity; take other weights")
            if value.is_floating_point() and dtype is not None:
                value = value.to(dtype)
            if leaf in owner._parameters:
                requires_grad = owner._parameters[leaf].requires_grad
                owner._parameters[leaf] = nn.Parameter(value.to(device), requires_grad=requires_grad)
            else:
                owner._buffers[leaf] = value.to(device)
        filled(model, owner_name)
    for module in model.modules():  # buffers that are computed, not stored
        for key, buffer in module._buffers.items():
            if buffer is not None and key in module._non_persistent_buffers_set:
                module._buffers[key] = buffer.to(device)


def load_model(
    directory: str | Path, *, dtype: torch.dtype | None = torch.bfloat16, device="cpu", filled=lambda model, name: None
):
    """A model directory of any format in the hub's classes (InternLM2 runs as Llama).

    Args:
        directory: with ``config.json`` and safetensors (or torch) weights.
        dtype: of the loaded parameters; None keeps the stored one.
        device: where to put them; ``'meta'`` compares names and shapes and reads no weight.
        filled: as for ``fill``, such as ``partition.over_ranks`` for ZeRO-3.

    Returns:
        ``(InternVLChatModel in eval mode, LoadReport)``.

    Raises:
        CheckpointError: not such a directory, or missing, unexpected or misshapen tensors.
    """
    view = model_view.open_model(directory)
    config = config_from_fields(view.config, directory)
    model, report = build(config, view.tensors, dtype=dtype, device=device, what=str(directory), filled=filled)
    stop_at(model, read_json(view.directory / "generation_config.json", missing={}).get("eos_token_id"))
    return model, report


def stop_at(model, token_ids: int | list[int] | None) -> None:
    """Makes a model stop where engines do that read its ``generation_config.json``."""
    if token_ids:
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig(eos_token_id=token_ids)


def build(
    config, tensors: Mapping[str, LazyTensor], *, dtype, device="cpu", what: str, filled=lambda model, name: None
):
    """A hub model of ``config`` filled from lazy tensors, with the same checks as ``load_model``."""
    model = empty_model(config)
    report = compare(model, tensors, what)
    if torch.device(device).type != "meta":
        fill(model, tensors, dtype=dtype, device=device, filled=filled)
    return model.eval(), report
