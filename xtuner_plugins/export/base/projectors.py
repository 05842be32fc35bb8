"""The projectors of a new base: from a file, or freshly drawn."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ...hub.constants import PROJECTOR_TYPES, projector_input_width
from ...hub.modeling_flash import TileGate, TilePooling, make_mlp2
from ...weights import model_view
from ...weights.checkpoint import open_checkpoint
from ...weights.lazy import LazyTensor, MemoryTensor
from ...weights.reading import CheckpointError, open_safetensors

# LLaVA's names of the same two layers: transformers', those of the original code, and XTuner's
_LLAVA_NAMES = {
    **dict.fromkeys(("multi_modal_projector.linear_1.", "mm_projector.0.", "projector.model.0."), "mlp1.0."),
    **dict.fromkeys(("multi_modal_projector.linear_2.", "mm_projector.2.", "projector.model.2."), "mlp1.2."),
}


def projector_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``mlp1``: LayerNorm (of ``pixel_shuffle_mlp`` alone), Linear, (GELU), Linear."""
    kind = config.get("projector_type", PROJECTOR_TYPES[0])
    wide = projector_input_width(config["vision_config"]["hidden_size"], config["downsample_ratio"], kind)
    llm = config["llm_config"]["hidden_size"]
    plain = kind != "pixel_shuffle_mlp"
    norm = {} if plain else {"mlp1.0.weight": (wide,), "mlp1.0.bias": (wide,)}
    for layer, width in zip((0, 2) if plain else (1, 3), (wide, llm), strict=True):
        norm |= {f"mlp1.{layer}.weight": (llm, width), f"mlp1.{layer}.bias": (llm,)}
    return norm


def projector_tensors(config: dict, source: str | Path | None, seed: int) -> dict[str, LazyTensor]:
    """``mlp1.*`` from a file, or freshly drawn."""
    shapes = projector_shapes(config)
    if source is None:
        return _fresh_projector(shapes, seed)
    held = _open_projector(Path(source))
    wrong = sorted(set(held) ^ set(shapes)) or [n for n in shapes if held[n].shape != shapes[n]]
    if wrong:
        name = wrong[0]
        found = list(held[name].shape) if name in held else "missing"
        raise CheckpointError(
            f"projector {source} doesn't fit these parts: {name} should be {list(shapes.get(name, ()))}, is {found}"
        )
    return {name: held[name] for name in shapes}


def flash_tensors(config: dict, seed: int) -> dict[str, LazyTensor]:
    """``mlp2`` and the router of a Flash model, freshly drawn by PyTorch's defaults."""
    width, llm = config["vision_config"]["hidden_size"], config["llm_config"]["hidden_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "mlp2": make_mlp2(projector_input_width(width, config["downsample_ratio"] ** 2), llm),
            "pooling_before_gating": TilePooling(width),
            "gating": TileGate(width),
        }
    return {
        f"{part}.{name}": MemoryTensor(tensor)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def _open_projector(path: Path) -> dict[str, LazyTensor]:
    if not path.exists():
        raise CheckpointError(f"projector file {path} does not exist")
    if (path / "config.json").is_file():
        held = model_view.open_model(path).tensors
    else:
        held = open_safetensors(path) if path.suffix == ".safetensors" else open_checkpoint(path).tensors
    held = {_our_name(k.removeprefix("model.")): v for k, v in held.items()}
    return {k: v for k, v in held.items() if k.startswith("mlp1.")} or {f"mlp1.{k}": v for k, v in held.items()}


def _our_name(name: str) -> str:
    theirs = next((each for each in _LLAVA_NAMES if name.startswith(each)), None)
    return name if theirs is None else _LLAVA_NAMES[theirs] + name.removeprefix(theirs)


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
