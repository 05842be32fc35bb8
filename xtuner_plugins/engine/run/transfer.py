"""Reads the checkpoints of every strategy, and resumes from them under any other and on any number of ranks.

A plain file and a ZeRO directory of any stage hold the same things in different cuts: float32 weights, the moments of
the optimizer, its options, and what hooks and schedulers save. Here they are read by parameter name, and written into
whatever the new run holds. Each rank of ZeRO reads only its own share from disk. No number is rounded, so that the next
step is the one that the old run would have made, to the order of its sums.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from ...weights.lazy import LazyTensor
from ...weights.reading import load_pickle
from ...weights.work_dir import OPTIMIZER_NAMES
from ...weights.zero import checkpoint_directory, open_deepspeed, open_optimizer, read_shards

STATES = "optimizer_by_name"  # in a checkpoint on its way into a plain run
# What DeepSpeed itself keeps in a model state, besides what the run gave it.
DEEPSPEEDS_OWN = {
    "module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "shared_params", "lr_scheduler",
    "frozen_param_fragments", "data_sampler", "random_ltd", "sparse_tensor_module_names", "skipped_steps",
    "global_steps", "global_samples", "dp_world_size", "mp_world_size", "ds_config", "ds_version", "optim_wrapper",
}  # fmt: skip


@dataclass
class TrainingState:
    """What a run continues from, by parameter name.

    Attributes:
        weights: Trained parameters, float32 where the run kept a float32 copy.
        states: The optimizer's state of each parameter: moments as lazy tensors in its shape, counters as they are.
            Empty where only weights are wanted.
        options: Options of each parameter's optimizer group, e.g. ``lr``.
        extra: What else the checkpoint holds, e.g. ``meta``, ``plan``, ``param_schedulers``.
    """

    weights: dict[str, LazyTensor]
    states: dict[str, dict[str, Any]]
    options: dict[str, dict[str, Any]]
    extra: dict[str, Any]


def read_state(path: str | Path, with_optimizer: bool = True) -> TrainingState:
    """Reads a plain file or a DeepSpeed directory, which `resume.check_loadable` has accepted; tensors stay on disk."""
    path = Path(path)
    if path.is_dir():
        return _read_directory(checkpoint_directory(path), with_optimizer)
    content = _open(path)
    weights, optimizer, names = (content.pop(key, None) for key in ("state_dict", "optimizer", OPTIMIZER_NAMES))
    if not with_optimizer:
        return TrainingState(weights, {}, {}, _read(content))
    states = {
        names[number]: {key: value if getattr(value, "shape", ()) else _read(value) for key, value in state.items()}
        for number, state in optimizer["state"].items()
    }
    members = [(names[number], group) for group in optimizer["param_groups"] for number in group["params"]]
    options = {name: _options(group) for name, group in members if name in weights}
    return TrainingState(weights, states, options, _read(content))


def _open(path: Path) -> dict[str, Any]:
    """A file's content with lazy tensors, without MMEngine's histories of logged values: nothing reads them again."""
    content = load_pickle(path)
    if hub := content.get("message_hub"):
        hub |= {"log_scalars": {}, "resumed_keys": dict.fromkeys(hub["runtime_info"], True)}
    return content


def _read(value: Any) -> Any:
    """The same with its lazy tensors read."""
    if isinstance(value, dict):
        return {key: _read(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_read, value))
    return value.read() if isinstance(value, LazyTensor) else value


def _read_directory(folder: Path, with_optimizer: bool) -> TrainingState:
    opened = open_deepspeed(folder)
    file = next(file for file in opened.files if file.name.endswith("_model_states.pt"))
    content = _open(file)
    extra = _read({key: value for key, value in content.items() if key not in DEEPSPEEDS_OWN})
    states, options = open_optimizer(folder) if with_optimizer else ({}, {})
    return TrainingState(opened.tensors, states, options, extra)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def load_any(filename: str, map_location: Any = "cpu") -> dict[str, Any]:
    """As MMEngine's loader of files, but runs nothing that a file names; a DeepSpeed directory becomes such a file.

    The optimizer's state stays by name, under ``STATES``, until `number_states` knows the optimizer.
    """
    if not Path(filename).is_dir():
        return _read(_open(Path(filename)))
    has_optimizer = bool(read_shards(checkpoint_directory(Path(filename))).optims)
    state = read_state(filename, has_optimizer)
    weights = {name: tensor.read() for name, tensor in state.weights.items()}
    return {**state.extra, "state_dict": weights, STATES: state}


def optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def number_states(checkpoint: dict[str, Any], model: nn.Module, optim_wrapper: OptimWrapper) -> None:
    """Turns the state by name of `load_any` into the ``optimizer`` that a plain file holds, in place."""
    state: TrainingState | None = checkpoint.pop(STATES, None)
    if state is None or not state.states:
        return
    optimizer = optim_wrapper.optimizer
    names = optimizer_names(model, optimizer)
    numbered = {
        number: {key: value.read() if isinstance(value, LazyTensor) else value for key, value in each.items()}
        for number, each in enumerate(map(state.states.get, names))
        if each is not None
    }
    groups, first = [], 0
    for group in optimizer.param_groups:
        members = range(first, first := first + len(group["params"]))
        saved = next((state.options[names[number]] for number in members if names[number] in state.options), {})
        groups.append({**_options(group), **saved, "params": list(members)})
    checkpoint["optimizer"] = {"state": numbered, "param_groups": groups}
    base = optim_wrapper.base_param_settings  # None where there is one group
    regroup(checkpoint.get("param_schedulers"), [*groups, base] if base else groups)


def regroup(schedulers: Any, groups: list[Mapping[str, Any]]) -> None:
    """Replaces the values per group in the states of schedulers by those of the groups that the new run holds."""
    for scheduler in schedulers or ():
        name = scheduler["param_name"]
        scheduler["base_values"] = [group.get(f"initial_{name}", group[name]) for group in groups]
        scheduler["_last_value"] = [group[name] for group in groups]


@torch.no_grad()
def fill_engine(engine: Any, state: TrainingState) -> None:
    """Writes weights, and the optimizer's state if there is one, into a DeepSpeed engine that has taken no step."""
    zero = engine.optimizer
    partitioned = int(engine.zero_optimization_stage()) == 3
    if partitioned:
        zero.checkpoint_event_prologue()
    if state.states:
        _make_states(zero, state)
    cut = _shares_of_stage_3(engine) if partitioned else _shares(engine)
    for name, start, count, fragment_of in cut:
        _copy(state.weights[name], start, count, fragment_of(None))
        for key, value in state.states.get(name, {}).items():
            if isinstance(value, LazyTensor):
                _copy(value, start, count, fragment_of(key))
    if not partitioned:
        zero.update_lp_params()
        return
    for half, full in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
        half.data.copy_(full.data)
    zero.checkpoint_event_epilogue()


def _copy(source: LazyTensor, start: int, count: int, target: torch.Tensor) -> None:
    """Copies ``count`` numbers of a tensor from ``start``; what lies behind its end is padding."""
    stop = min(start + count, source.numel)
    target.zero_()
    if stop > start:
        target[: stop - start].copy_(source.reshape((source.numel,)).read(start, stop))


def _make_states(zero: Any, state: TrainingState) -> None:
    """Gives the optimizer the state that its first step would, and the saved options; moments are still zero."""
    groups = zero.optimizer.param_groups
    group_of = getattr(zero, "sub_group_to_group_id", range(len(groups)))
    flats = getattr(zero, "fp32_partitioned_groups_flat", None) or [group["params"][0] for group in groups]
    attributes = ("bit16_groups", "bf16_groups", "fp16_groups")  # the parameters of each flat vector, by stage
    members = next(getattr(zero, name) for name in attributes if hasattr(zero, name))
    for index, (flat, parameters) in enumerate(zip(flats, members, strict=True)):
        names = [zero.param_names[parameter] for parameter in parameters]
        example = next((state.states[name] for name in names if name in state.states), {})
        zero.optimizer.state[flat] = {
            key: torch.zeros_like(flat) if isinstance(value, LazyTensor) else copy.deepcopy(value)
            for key, value in example.items()
        }
        groups[group_of[index]].update(state.options[names[0]])
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()


def _shares(engine: Any) -> Iterator[tuple]:
    """This rank's (name, first number, count, fragment by key) of each parameter under ZeRO-1 and 2."""
    for name, parameter in engine.module.named_parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            place = mapping.lp_fragment_address
            yield name, place.start, place.numel, mapping.get_hp_fragment


def _shares_of_stage_3(engine: Any) -> Iterator[tuple]:
    """As `_shares`; under ZeRO-3 every parameter is cut by itself, and its last share is padded."""
    zero = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            count = parameter.ds_tensor.ds_numel

            def fragment(key: str | None, parameter=parameter) -> torch.Tensor:
                return zero._get_fp32_opt_state_partition(parameter, False, key)[0]

            yield name, count * engine.global_rank, count, fragment
