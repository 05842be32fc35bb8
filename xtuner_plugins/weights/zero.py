"""DeepSpeed checkpoint directories (ZeRO stages 0 to 3) as lazy tensors.

A directory holds ``mp_rank_00_model_states.pt`` (stages 0 to 2) or a ``zero_pp_rank_{rank}_mp_rank_00_model_states.pt``
per rank (stage 3), and a ``*_optim_states.pt`` per rank with the flattened fp32 master weights. With three ranks::

    stages 1, 2   one flat vector per parameter group, cut into equal partitions:
        rank 0 |  a a a a a b b  | rank 1 |  b b b c c c c  | rank 2 |  c c d d d . .  |       (. padding)
    stage 3       every parameter is cut by itself; each rank's groups hold its pieces one after another:
        rank 0 |  a a  b b  c c  | rank 1 |  a a  b b  c c  | rank 2 |  a .  b b  c .  |

Frozen parameters are saved beside them (``frozen_param_fragments``) unless ``exclude_frozen_parameters`` was set. The
layout follows ``deepspeed/utils/zero_to_fp32.py``, which can't be used here: it unpickles with ``weights_only=False``
and joins whole groups in memory.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CheckpointError, refusing
from .lazy import Joined, LazyTensor
from .reading import Checkpoint, load_pickle

WEIGHTS = "single_partition_of_fp32_groups"  # of stages 1 and 2, and of DeepSpeed's bfloat16 optimizer


def checkpoint_directory(path: Path) -> Path | None:
    """The folder with the states: ``path`` itself, or the tag that its file ``latest`` names; None if neither."""
    if any(path.glob("*_model_states.pt")):
        return path
    latest = path / "latest"
    if not latest.is_file():
        return None
    tag = latest.read_text(encoding="utf-8").strip()
    if tag and Path(tag).name == tag and any((path / tag).glob("*_model_states.pt")):
        return path / tag
    raise CheckpointError(f"{latest} names {tag!r}, but {path / tag} holds no *_model_states.pt")


@dataclass(frozen=True)
class Shards:
    """The files of a DeepSpeed directory, read lazily.

    Attributes:
        models: ``*_model_states.pt`` by rank (one for stages 0 to 2).
        optims: ``optimizer_state_dict`` of ``*_optim_states.pt`` by rank; empty where nothing is partitioned.
        stage: ZeRO stage; 0 where the module's own copy of the weights is all there is.
        world_size: Ranks that wrote the directory.
        groups: Names and shapes of the flattened parameters, one dict per flat vector.
    """

    path: Path
    files: list[Path]
    models: list[dict]
    optims: list[dict] = field(default_factory=list)
    stage: int = 0
    world_size: int = 1
    groups: list[dict] = field(default_factory=list)

    def unflatten(self, flat: list[list[LazyTensor]]) -> dict[str, LazyTensor]:
        """Parameters by name. Args: ``flat[rank][group]``, a 1-D share of the weights or of one moment."""
        if self.stage == 3:
            shapes = {name: shape for group in self.groups for name, shape in group.items()}
            return _cut([Joined(parts) for parts in flat], shapes, self.path)
        tensors, padding = {}, 2 * len(flat) - 1  # vectors are aligned to two elements per rank
        for group, shapes in enumerate(self.groups):
            tensors |= _cut([Joined([rank[group] for rank in flat])], shapes, self.path, padding)
        return tensors


@refusing
def read_shards(path: Path) -> Shards:
    """Opens the files of a DeepSpeed directory; `CheckpointError` where ranks are missing, or there are none."""
    model_files, optim_files = (
        sorted(path.glob(f"*_{kind}_states.pt"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
        for kind in ("model", "optim")
    )
    files, states = model_files + optim_files, [load_pickle(file) for file in model_files]
    if not optim_files and any(file.name.startswith("zero_pp_rank") for file in model_files):
        raise CheckpointError(f"{path} is a ZeRO-3 checkpoint without *_optim_states.pt, which hold the weights")
    optims = [load_pickle(file).get("optimizer_state_dict") or {} for file in optim_files] or [{}]
    # DeepSpeed's bfloat16 optimizer names no stage. It is an enum, so a stand-in that keeps its value.
    stage = optims[0].get("zero_stage", 1 if WEIGHTS in optims[0] else None)
    stage = getattr(stage, "args", (stage,))[0]
    if stage is None:  # no optimizer, or a plain one: the module's own copy is all there is
        return Shards(path, files, states)
    world_size = optims[0].get("partition_count")
    world_size = max(world_size) if isinstance(world_size, list) else world_size
    for kind, number in (("optim", len(optims)), ("model", len(states) if stage == 3 else world_size)):
        if number != world_size:
            told = f"{path} was saved by {world_size} ranks but holds {number} *_{kind}_states.pt"
            raise CheckpointError(f"{told}; copy those of every node into one folder")
    return Shards(path, files, states, optims, stage, world_size, states[0]["param_shapes"])


@refusing
def open_deepspeed(path: Path) -> Checkpoint:
    """Lazy tensors of a DeepSpeed directory: fp32 masters for what trained, as saved for what was frozen.

    Raises:
        CheckpointError: as `read_shards`, or sizes that don't add up.
    """
    shards = read_shards(path)
    state = shards.models[0]
    tensors = {k: v for k, v in (state["module"] or {}).items() if isinstance(v, LazyTensor)}
    if shards.optims:
        held, key = (tensors, WEIGHTS) if shards.stage <= 2 else ({}, "fp32_flat_groups")
        tensors = held | _frozen(shards) | shards.unflatten([optim[key] for optim in shards.optims])
        shared = dict(state.get("shared_params") or {})
        tensors |= {alias: tensors[name] for alias, name in shared.items() if name in tensors}
    return Checkpoint(path, "deepspeed", tensors, shards.files, state)


@refusing
def open_optimizer(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The optimizer's state in a ZeRO directory.

    Returns:
        By parameter name, its state (moments as lazy tensors in the parameter's shape, counters as saved), and the
        options of its group (``lr``, ``betas``, ...).

    Raises:
        CheckpointError: as `read_shards`, no ZeRO directory, or a state without all of its groups.
    """
    shards = read_shards(path)
    if not shards.optims:
        raise CheckpointError(f"{path} holds no ZeRO optimizer state")
    ranks = [optim["optimizer_state_dict" if shards.stage == 3 else "base_optimizer_state"] for optim in shards.optims]
    numbers, first = range(len(shards.groups)), ranks[0]
    if any(set(rank["state"]) != set(numbers) for rank in ranks):
        raise CheckpointError(f"{path}: the optimizer's state lacks groups of parameters, as before the first step")
    states: dict[str, dict[str, Any]] = {name: {} for group in shards.groups for name in group}
    for key, example in first["state"][0].items():
        if isinstance(example, LazyTensor) and len(example.shape) == 1:
            moments = shards.unflatten([[rank["state"][number][key] for number in numbers] for rank in ranks])
            for name, state in states.items():
                state[key] = moments[name]
            continue
        for number, group in enumerate(shards.groups):  # a counter; each parameter's optimizer counts for itself
            value = first["state"][number][key]
            for name in group:
                states[name][key] = value.read() if isinstance(value, LazyTensor) else value
    options = {}
    for group in first["param_groups"]:
        own = {key: value for key, value in group.items() if key != "params"}
        options |= {name: own for number in group["params"] for name in shards.groups[number]}
    return states, options


def _frozen(shards: Shards) -> dict[str, LazyTensor]:
    tensors, states = {}, shards.models if shards.stage == 3 else shards.models[:1]
    for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
        parts = [(state.get("frozen_param_fragments") or {}).get(name) for state in states]
        if None in parts:
            raise CheckpointError(f"{shards.path}: the numbers of the frozen parameter {name} are missing")
        vector = Joined([part.reshape((part.numel,)) for part in parts])
        tensors |= _cut([vector], {name: shape}, shards.path, vector.numel)
    return tensors


def _cut(vectors: list[LazyTensor], shapes: dict, path: Path, padding: int = 0) -> dict[str, LazyTensor]:
    """Parameters that lie one after another in vectors, an equal share of each parameter in each vector."""
    tensors, used = {}, 0
    for name, shape in shapes.items():
        share = -(-math.prod(shape) // len(vectors))  # the last one ends in padding
        if used + share > min(vector.numel for vector in vectors):
            raise CheckpointError(f"{path}: the numbers end before {name}; files of different saves are mixed")
        pieces = [vector.rows(used, used + share) for vector in vectors]
        tensors[name] = Joined(pieces).rows(0, math.prod(shape)).reshape(shape)
        used += share
    if (most := max(vector.numel for vector in vectors)) > used + padding:
        raise CheckpointError(f"{path}: {most} numbers for parameters of {used}; files of different saves are mixed")
    return tensors
