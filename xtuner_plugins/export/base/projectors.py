"""The projectors of a new base: from a file, or freshly drawn."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...hub.constants import projector_input_width
from ...hub.modeling_flash import FEWER, TileGate, TilePooling, make_mlp2
from ...weights import model_view
from ...weights.checkpoint import open_checkpoint
from ...weights.lazy import LazyTensor, MemoryTensor
from ...weights.loader import config_from_fields
from ...weights.reading import CheckpointError


def projector_tensors(config: dict, source: str | Path | None, seed: int) -> dict[str, LazyTensor]:
    """``mlp1.*`` of a new base.

    Args:
        config: official fields.
        source: model directory, or file whose names may lack ``mlp1.``; None for a fresh one.
        seed: of a fresh one: LayerNorm at ones and zeros, linear layers uniform in 1/sqrt(fan_in).

    Raises:
        CheckpointError: no such source, or tensors of other names or shapes.
    """
    from ...hub.modeling_internvl_chat import make_projector  # takes in transformers

    with torch.device("meta"):
        own = make_projector(config_from_fields(config, "the base")).state_dict()
    shapes = {f"mlp1.{name}": tuple(tensor.shape) for name, tensor in own.items()}
    if source is None:
        return _fresh_projector(shapes, seed)
    is_model = Path(source, "config.json").is_file()
    tensors = model_view.open_model(source).tensors if is_model else open_checkpoint(source).tensors
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    held = {name: tensor for name, tensor in own.items() if name.startswith("mlp1.")}
    held = held or {f"mlp1.{name}": tensor for name, tensor in own.items()}
    for name in sorted(held.keys() | shapes.keys()):
        if (found := held[name].shape if name in held else None) != (wanted := shapes.get(name)):
            raise CheckpointError(f"projector {source} doesn't fit these parts: {name} should be {wanted}, is {found}")
    return {name: held[name] for name in shapes}


def flash_tensors(config: dict, tensors: Mapping[str, LazyTensor], seed: int) -> dict[str, LazyTensor]:
    """``mlp2`` of a Flash model, made of ``mlp1`` among its tensors, and its router, drawn by PyTorch's defaults."""
    width, llm = config["vision_config"]["hidden_size"], config["llm_config"]["hidden_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "mlp2": make_mlp2(projector_input_width(width, config["downsample_ratio"] ** 2), llm),
            "pooling_before_gating": TilePooling(width),
            "gating": TileGate(width),
        }
    if "mlp1.3.weight" in tensors:  # else the config is refused
        own = {name: tensor.read().float() for name, tensor in tensors.items() if name.startswith("mlp1.")}
        pool_projector(parts["mlp2"], own)
    return {
        f"{part}.{name}": MemoryTensor(tensor)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


@torch.no_grad()
def pool_projector(mlp2: nn.Sequential, projector: Mapping[str, torch.Tensor]) -> None:
    """Makes ``mlp2`` what ``mlp1`` is on the mean of the four normalized tokens that a token of it replaces.

    The middle layer has no part in ``mlp1``: it makes x and -x, of which GELU(x) - GELU(-x) = x.
    """
    llm = len(projector["mlp1.3.bias"])
    norm, first, _, _, second, _, _, last = mlp2

    def over_cell(each: torch.Tensor) -> torch.Tensor:
        """[..., 2 x 2 x D] of ``mlp1`` as [..., 4 x 4 x D]: pixel shuffle has a cell's rows, columns and channels."""
        square = each.unflatten(-1, (2, 2, -1))
        return square.repeat(*[1] * (each.ndim - 1), 2, 2, 1).flatten(-3)

    norm.weight.copy_(over_cell(projector["mlp1.0.weight"]))
    norm.bias.copy_(over_cell(projector["mlp1.0.bias"]))
    first.weight[:llm].copy_(over_cell(projector["mlp1.1.weight"]) / FEWER)
    first.bias[:llm].copy_(projector["mlp1.1.bias"])
    second.weight[:, llm:] = 0.0  # of the units of the first layer that are left drawn
    for sign, rows in ((1, slice(llm)), (-1, slice(llm, None))):
        second.weight[rows, :llm].copy_(sign * projector["mlp1.3.weight"])
        second.bias[rows].copy_(sign * projector["mlp1.3.bias"])
        last.weight[:, rows].copy_(sign * torch.eye(llm))
    last.bias.zero_()


def _fresh_projector(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, LazyTensor]:
    generator, fresh = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        layer, kind = name.rsplit(".", 1)
        if len(shapes[f"{layer}.weight"]) == 1:  # LayerNorm
            fresh[name] = MemoryTensor(torch.full(shape, float(kind == "weight")))
        else:
            bound = 1 / math.sqrt(shapes[f"{layer}.weight"][1])
            fresh[name] = MemoryTensor(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return fresh
