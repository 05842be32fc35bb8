"""One build of a config's parts, without weights, workers and process group.

What a constructor refuses (a target that is no layer, a head that trains twice, a base of another shape) is refused
here by the same constructor, before a process starts and before weights are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import mmengine.registry as registries
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.utils.misc import get_object_from_string
from torch.utils.data import DataLoader

from ...datasets import MultimodalDataset, PreferenceDataset, collate_pairs
from ...ranges import check_room
from ...settings import VALIDATION, ConfigError, import_types, typed_nodes, value_at
from .. import register_all
from .text import check_keywords, check_text, refused

# Settings of a loader that the runner replaces by objects.
LOADER_PARTS = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}


def check_config(cfg: Config, deepspeed: Mapping[str, Any] | None = None) -> None:
    """The whole check: what the text tells, and one build; arguments and errors as `check_text` and `check_build`."""
    check_text(cfg)
    check_build(cfg, deepspeed)


def check_build(cfg: Config, deepspeed: Mapping[str, Any] | None = None) -> None:
    """Builds model (without weights), dataset, loader, optimizer, schedulers and hooks, and discards them.

    The data come first, and with them the first sample of each annotation file: MMEngine's runner and the models take
    seconds to import.

    Args:
        cfg: The config, whose text was checked.
        deepspeed: The settings in the file of ``--deepspeed``; None without it.

    Raises:
        ConfigError: The key of the part and the error of its constructor, or a type that isn't known.
    """
    from ..run.loops import PlannedTrainLoop
    from ..run.schedulers import count_steps

    with refused("train_dataloader.dataset"):
        dataset = _build_data(cfg.train_dataloader.dataset)
    register_all()
    import_types(cfg)
    for key_path, node in typed_nodes(cfg.to_dict()):
        kind = resolve_type(node["type"])
        if not callable(kind):
            remedy = "import it in the config, or look in CHANGELOG.md what replaces it"
            raise ConfigError(f"{key_path}.type={node['type']!r} is not a known class; {remedy}")
        if isinstance(node["type"], str):  # the text alone told of no other
            check_keywords(key_path, node, kind.__module__, kind.__name__)
    with refused("train_dataloader"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        DataLoader([0], **{key: value for key, value in cfg.train_dataloader.items() if key not in LOADER_PARTS})
    with refused("optim_wrapper"):
        optimizer = _build_optimizer(cfg.optim_wrapper)
    is_planned = resolve_type(cfg.train_cfg.get("type")) is PlannedTrainLoop
    for key_path, scheduler in _parts(cfg, "param_scheduler"):
        with refused(key_path):
            scheduler = count_steps(scheduler) if is_planned else scheduler
            options = {key: value for key, value in scheduler.items() if key != "convert_to_iter_based"}
            PARAM_SCHEDULERS.build(dict(options, optimizer=optimizer))
    for key_path, hook in (*_parts(cfg, "default_hooks"), *_parts(cfg, "custom_hooks")):
        with refused(key_path):
            HOOKS.build(hook)
    _build_model(cfg, dataset, deepspeed)


def resolve_type(value: Any) -> Any:
    """The class or function that a ``type`` means: itself, a registry name, or a dotted path; None if unknown."""
    if not isinstance(value, str):
        return value
    if "." in value:
        return get_object_from_string(value)
    found = (each for each in vars(registries).values() if isinstance(each, registries.Registry))
    return next((each.module_dict[value] for each in found if value in each.module_dict), None)


def _parts(cfg: Config, key: str) -> list[tuple[str, dict]]:
    """(key path, settings) of what stands under a key: one part, several by name, or a list of them.

    Raises:
        ConfigError: A part without a type.
    """
    settings = cfg.get(key) or {}
    if "type" in settings:
        return [(key, dict(settings))]
    named = isinstance(settings, Mapping)
    pairs = settings.items() if named else enumerate(settings)
    found = [(f"{key}.{name}" if named else f"{key}[{name}]", part) for name, part in pairs if part]
    for key_path, part in found:
        if not isinstance(part, Mapping) or "type" not in part:
            raise ConfigError(f"{key_path}={part!r} has no type; give it one")
    return [(key_path, dict(part)) for key_path, part in found]


def _build_optimizer(settings: Mapping[str, Any]) -> Any:
    wrapper = {key: value for key, value in settings.items() if key not in ("constructor", "paramwise_cfg")}
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper["optimizer"] = OPTIMIZERS.build(dict(wrapper["optimizer"], params=[parameter]))
    return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **wrapper})


def _build_model(cfg: Config, dataset: MultimodalDataset | None, deepspeed: Mapping[str, Any] | None) -> None:
    """Builds the model, its parameter groups, and what depends on model and data together."""
    from ..hooks.validation import validation_dataset
    from ..run.loss_scaling import settle_deepspeed_dtype
    from ..run.param_groups import GroupedOptimWrapperConstructor as Grouped

    with refused("model"):
        model = _build_ours(MODELS.build, cfg.model)
    if model is not None:
        if deepspeed is not None:
            with refused("--deepspeed"):
                settle_deepspeed_dtype(deepspeed, model.dtype)
        with refused("optim_wrapper.paramwise_cfg"):
            settings = {"paramwise_cfg": {}, "constructor": Grouped, **cfg.optim_wrapper}
            if resolve_type(settings["constructor"]) is Grouped:
                wrapper = {"type": "OptimWrapper", "optimizer": settings["optimizer"]}
                list(Grouped(wrapper, settings["paramwise_cfg"]).options_of(model))
    if model is not None and dataset is not None:
        _check_pairs(model, dataset, cfg.train_dataloader.get("collate_fn") or {})
    validation = value_at(cfg, VALIDATION) or {}
    if validation.get("data_paths"):
        with refused("val_data_paths"):
            if getattr(model, "precomputed_reference", False) and not model.reference_is_complete:
                raise ValueError(
                    "log probabilities of the reference are computed once for the training pairs only: leave "
                    "val_data_paths empty, set precompute_reference = False, or train LoRA with a frozen projector"
                )
            files = validation["data_paths"], validation.get("image_folders")
            _build_data(validation_dataset(cfg.train_dataloader.dataset, *files))


def _build_ours(build: Callable[[Mapping], Any], settings: Mapping[str, Any]) -> Any:
    """Builds a part of this project, whose constructor is quick on the meta device; returns None for others."""
    if not getattr(resolve_type(settings["type"]), "__module__", "").startswith("xtuner_plugins."):
        return None
    with torch.device("meta"):
        return build(settings)


def _build_data(settings: Mapping[str, Any]) -> MultimodalDataset | None:
    """A dataset of ours whose largest image has room, and whose files' first samples can be used."""
    dataset = _build_ours(DATASETS.build, settings)
    if not isinstance(dataset, MultimodalDataset):
        return None
    for source in dataset.sources:
        tiling = source.tiling
        check_room(tiling.max_tiles, tiling.use_thumbnail, dataset.budget.tokens_per_tile, dataset.budget.max_length)
    for start in {0, *map(int, dataset.ends[:-1])}:
        dataset[start]
    return dataset


def _check_pairs(model: Any, dataset: MultimodalDataset, collate_fn: Mapping[str, Any]) -> None:
    """Raises where only some of model, dataset and collate function are for preference pairs.

    Two answers behind each other are also a text that a model can be trained on, so nothing else would notice.
    """
    from ...models import PreferenceModel

    collate = resolve_type(collate_fn.get("type"))
    if len({isinstance(model, PreferenceModel), isinstance(dataset, PreferenceDataset), collate is collate_pairs}) > 1:
        found = ", ".join([type(model).__name__, type(dataset).__name__, getattr(collate, "__name__", str(collate))])
        raise ConfigError(
            f"model and train_dataloader don't fit together: {found}. Preference tuning takes PreferenceModel, "
            "PreferenceDataset and collate_pairs; other training takes none of them"
        )
