"""Loads model directories into the hub classes, tensor by tensor; runs no code from a directory."""

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from ..stack import separate_experts
from . import model_view
from .errors import STRANGE, CheckpointError
from .lazy import LazyTensor, cast
from .tokenizer_files import load_tokenizer  # noqa: F401  found here, too, beside `load_model`


def read_config(directory: str | Path):
    """``config.json`` of a model directory of any format as our ``InternVLChatConfig``; errors as for `open_config`."""
    return config_from_fields(model_view.open_config(directory)[2], directory)


def config_from_fields(fields: Mapping, where: str | Path):
    """The hub's config of official fields; ``CheckpointError``, with ``where`` in it, for fields that are refused."""
    from ..hub.configuration_internvl_chat import InternVLChatConfig

    try:
        return InternVLChatConfig(**{k: v for k, v in fields.items() if k not in ("auto_map", "model_type")})
    except STRANGE as error:
        raise CheckpointError(f"{where}/config.json: {' '.join(str(error).split())}") from None


def empty_model(config) -> nn.Module:
    """The hub model of an ``InternVLChatConfig`` with parameters on the meta device and real buffers."""
    from accelerate import init_empty_weights

    from ..hub.modeling_internvl_chat import InternVLChatModel

    with init_empty_weights(include_buffers=False):
        return separate_experts(InternVLChatModel(config))


def check_model(config: Mapping, tensors: Mapping[str, LazyTensor], what: str) -> nn.Module:
    """An empty hub model of a ``config`` in official fields, whose tensors have the names and shapes of these.

    Raises:
        CheckpointError: what is missing, unexpected or of another shape, after the name of the tensors, ``what``; or
            fields that no such model has.
    """
    from ..hub.modeling_intern_vit import num_used_layers

    made = config_from_fields(config, what)
    try:
        model = empty_model(made)
        num_used_layers(made.select_layer, made.vision_config.num_hidden_layers)
    except STRANGE as error:
        raise CheckpointError(f"{what}: {' '.join(str(error).split())}") from None
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = {name: tensor.shape for name, tensor in tensors.items()}
    both = sorted(name for name in own.keys() & held.keys() if own[name] != held[name])
    wrong = {
        "missing": sorted(own.keys() - held.keys()),
        "unexpected": sorted(held.keys() - own.keys()),
        "of another shape": [f"{name} is {list(held[name])}, the model has {list(own[name])}" for name in both],
        "of whole numbers": sorted(name for name, each in tensors.items() if not each.dtype.is_floating_point),
    }
    said = [f"{len(names)} {kind}: {', '.join(names[:4])}" for kind, names in wrong.items() if names]
    if any(".lora_" in name or ".base_layer." in name for name in wrong["unexpected"]):
        said.append("these are unmerged adapters, not a model: export them with tools/convert_to_official.py")
    if said:
        raise CheckpointError(f"{what}: {'; '.join(said)}")
    return model


def build(
    config: Mapping,
    tensors: Mapping[str, LazyTensor],
    what: str,
    *,
    dtype: torch.dtype | None,
    device="cpu",
    filled: Callable[[nn.Module, str], None] = lambda model, name: None,
) -> nn.Module:
    """A hub model in eval mode, filled from lazy tensors, one at a time.

    Args:
        config: official fields.
        tensors: under the names of training.
        what: to call them in messages.
        dtype: to store in; None keeps each tensor's own dtype.
        device: where to put them; ``'meta'`` compares names and shapes and reads no weight.
        filled: called with (model, name of a submodule) as soon as the submodule's own tensors are filled, before the
            next ones are read; it may replace them (by 4 bits, by this rank's share) to save memory.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors, or numbers that aren't finite.
    """
    model = check_model(config, tensors, what).eval()
    if torch.device(device).type == "meta":
        return model
    for owner_name, names in groupby(model.state_dict().keys(), key=lambda name: name.rpartition(".")[0]):
        own = {}
        for name in names:
            value = cast(tensors[name], None, finite=name).read()
            own[name.rpartition(".")[2]] = value.to(device, dtype if value.is_floating_point() else None)
        model.get_submodule(owner_name).load_state_dict(own, strict=False, assign=True)
        filled(model, owner_name)
    for module in model.modules():  # buffers that are computed, not stored
        held = ((key, module._buffers.get(key)) for key in module._non_persistent_buffers_set)
        module._buffers.update({key: buffer.to(device) for key, buffer in held if buffer is not None})
    return model


def load_model(directory: str | Path, *, dtype: torch.dtype | None = torch.bfloat16, **options) -> nn.Module:
    """A model directory of any format in the hub's classes, an ``InternVLChatModel`` in eval mode.

    Args:
        directory: with ``config.json`` and safetensors (or torch) weights.
        dtype: of the loaded parameters; None keeps the stored one.
        **options: ``device`` and ``filled``, as for `build`.

    Raises:
        CheckpointError: not such a directory; else as for `build`.
    """
    view = model_view.open_model(directory)
    model = build(view.config, view.tensors, str(directory), dtype=dtype, **options)
    stop_at(model, model_view.stop_ids(view))
    return model


def stop_at(model, token_ids: list[int]) -> None:
    """Makes a model stop where engines do that read its ``generation_config.json``."""
    if token_ids:
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig(eos_token_id=token_ids)


def partition_dtype(config: Mapping) -> torch.dtype:
    """The dtype in which a DeepSpeed configuration computes; parameters must have it before they are partitioned."""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16}
    found = (dtype for key, dtype in names.items() if (config.get(key) or {}).get("enabled") is True)
    return next(found, torch.float32)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 holds this parameter (its own data is empty then)."""
    return hasattr(parameter, "ds_id")


def over_ranks(config: Mapping) -> Callable[[nn.Module, str], None]:
    """For ``build(filled=...)`` under ZeRO-3: splits the own parameters of each module before the next is read.

    So no rank ever holds more than its share and one module. Every rank of the process group must load the same model:
    splitting is a collective operation. ``deepspeed.initialize`` later leaves partitioned parameters as they are.

    Args:
        config: the DeepSpeed configuration, of stage 3.
    """
    from deepspeed import zero

    kept = ("zero_optimization", "bf16", "fp16")
    # The batch size doesn't matter here, but DeepSpeed refuses a configuration without one.
    config = {"train_micro_batch_size_per_gpu": 1, **{key: config[key] for key in kept if key in config}}

    def partition(model: nn.Module, name: str) -> None:
        parameters = list(model.get_submodule(name).parameters(recurse=False))
        if parameters:
            zero.Init(module=nn.ParameterList(parameters), config_dict_or_path=config)

    return partition
