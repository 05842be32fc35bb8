"""The projector of a new base: from a file, or freshly drawn."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from xtuner_plugins.checkpoints.reader import CheckpointError, open_checkpoint, open_safetensors
from xtuner_plugins.checkpoints.tensors import LazyTensor, MemoryTensor


def projector_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``mlp1``: LayerNorm, Linear, (GELU), Linear."""
    wide = config["vision_config"]["hidden_size"] * int(1 / config["downsample_ratio"]) ** 2
    llm = config["llm_config"]["hidden_size"]
    return {
        "mlp1.0.weight": (wide,), "mlp1.0.bias": (wide,),
        "mlp1.1.weight": (llm, wide), "mlp1.1.bias": (llm,),
        "mlp1.3.weight": (llm, llm), "mlp1.3.bias": (llm,),
    }  # fmt: skip


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


def _open_projector(path: Path) -> dict[str, LazyTensor]:
    if not path.exists():
        raise CheckpointError(f"projector file {path} does not exist")
    held = open_safetensors(path) if path.suffix == ".safetensors" else open_checkpoint(path).tensors
    held = {k.removeprefix("model."): v for k, v in held.items()}
    if any(k.startswith("mlp1.") for k in held):
        return {k: v for k, v in held.items() if k.startswith("mlp1.")}
    return {f"mlp1.{k}": v for k, v in held.items()}


def _fresh_projector(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, LazyTensor]:
    generator = torch.Generator().manual_seed(seed)
    fresh = {"mlp1.0.weight": torch.ones(shapes["mlp1.0.weight"]), "mlp1.0.bias": torch.zeros(shapes["mlp1.0.bias"])}
    for layer in ("mlp1.1", "mlp1.3"):
        bound = 1 / math.sqrt(shapes[f"{layer}.weight"][1])
        for kind in ("weight", "bias"):
            fresh[f"{layer}.{kind}"] = torch.empty(shapes[f"{layer}.{kind}"]).uniform_(
                -bound, bound, generator=generator
            )
    return {k: MemoryTensor(v) for k, v in fresh.items()}
