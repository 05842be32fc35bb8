"""Builds the parts of a config without weights, workers and process group.

What a constructor refuses (a negative learning rate, no LoRA rank, too many tiles, a base without tokenizer) is refused
here by the same constructor, before a process starts and before weights are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from torch.utils.data import DataLoader

from ..checkpoints.formats import open_config
from ..datasets import MultimodalDataset, PreferenceDataset, collate_pairs
from ..datasets.base import tiling_of
from ..datasets.images.tiling import DynamicTiling
from ..datasets.plan.budget import TileBudget
from ..ranges import check_max_norm, check_room
from ..settings import ConfigError, validation_settings
from .config_check import resolve_type
from .hooks.validation_scores import validation_dataset
from .loss_scaling import scaled_wrapper
from .optimizers import build_adamw
from .param_groups import planned_groups
from .run_length import check_length

# Settings of a loader that the runner replaces by objects.
LOADER_PARTS = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}


def build_parts(cfg: Config) -> None:
    """Builds model (without weights), dataset, loader, optimizer, schedulers and hooks, and discards them.

    Raises:
        ConfigError: The key of the part and the error of its constructor.
    """
    with _refused("train_dataloader"):
        _build_loader(cfg.train_dataloader)
    with _refused("train_cfg"):
        check_length(cfg.train_cfg.get("max_iters"), cfg.train_cfg.get("max_epochs"))
    with _refused("optim_wrapper"):
        optimizer = _build_optimizer(cfg.optim_wrapper)
    schedulers = cfg.get("param_scheduler") or []
    for index, scheduler in enumerate([schedulers] if isinstance(schedulers, Mapping) else schedulers):
        with _refused("param_scheduler" if isinstance(schedulers, Mapping) else f"param_scheduler[{index}]"):
            options = {key: value for key, value in scheduler.items() if key != "convert_to_iter_based"}
            PARAM_SCHEDULERS.build(dict(options, optimizer=optimizer))
    for name, hook in (cfg.get("default_hooks") or {}).items():
        with _refused(f"default_hooks.{name}"):
            _build_hook(hook)
    for index, hook in enumerate(cfg.get("custom_hooks") or []):
        with _refused(f"custom_hooks[{index}]"):
            _build_hook(hook)
    with _refused("model"):
        model = _build_ours(MODELS.build, cfg.model)
    if model is not None:
        with _refused("optim_wrapper"):
            scaled_wrapper(cfg.optim_wrapper, model.dtype)
        with _refused("optim_wrapper.paramwise_cfg"):
            planned_groups(cfg, model)
    with _refused("train_dataloader.dataset"):
        dataset = _build_ours(DATASETS.build, cfg.train_dataloader.dataset)
        if isinstance(dataset, MultimodalDataset):
            for source in dataset.sources:
                _check_room(source.tiling, dataset.budget)
    if model is not None and isinstance(dataset, MultimodalDataset):
        _check_pairs(model, dataset, cfg.train_dataloader.get("collate_fn") or {})
    validation = validation_settings(cfg)
    if validation.get("data_paths"):
        with _refused("val_data_paths"):
            _check_reference(model)
            files = validation["data_paths"], validation.get("image_folders")
            _build_ours(DATASETS.build, validation_dataset(cfg.train_dataloader.dataset, *files))


def build_optimizer_early(settings: Mapping[str, Any]) -> None:
    """Builds ours, or one of PyTorch, without MMEngine's registry, which takes seconds to import.

    Raises:
        ConfigError: What its constructor says.
    """
    build = settings["type"]
    if build is build_adamw or (isinstance(build, type) and issubclass(build, torch.optim.Optimizer)):
        rest = {key: value for key, value in settings.items() if key != "type"}
        with _refused("optim_wrapper"):
            build([torch.nn.Parameter(torch.zeros(1))], **rest)


def build_loader_early(settings: Mapping[str, Any]) -> None:
    """Builds a loader over nothing, and checks that a largest image fits; no tokenizer is loaded for that.

    Raises:
        ConfigError: What the loader says, or no room for `max_tiles`.
    """
    from ..hub.configuration_internvl_chat import num_image_tokens

    with _refused("train_dataloader"):
        _build_loader(settings)
    dataset = settings["dataset"]
    if not _is_ours(dataset["type"]) or "max_length" not in dataset or dataset.get("dataset_settings"):
        return  # limits of single files are known when all of it is built
    with _refused("train_dataloader.dataset"):
        fields = open_config(dataset["base"])[2]
        config = SimpleNamespace(**{**fields, "vision_config": SimpleNamespace(**fields["vision_config"])})
        _check_room(tiling_of(config, dataset), TileBudget(num_image_tokens(config), dataset["max_length"]))


def _is_ours(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, MultimodalDataset)


@contextmanager
def _refused(key: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, AssertionError, KeyError, OSError, RuntimeError) as error:
        raise ConfigError(f"{key}: {error or type(error).__name__}") from error


def _build_ours(build: Callable[[Mapping], Any], settings: Mapping[str, Any]) -> Any:
    """Builds a part of this project, whose constructor is quick on the meta device; returns None for others."""
    if not getattr(resolve_type(settings["type"]), "__module__", "").startswith("xtuner_plugins."):
        return None
    with torch.device("meta"):
        return build(settings)


def _check_room(tiling: DynamicTiling, budget: TileBudget) -> None:
    """Raises `RangeError` where no image can have ``max_tiles``."""
    check_room(tiling.max_tiles, tiling.use_thumbnail, budget.tokens_per_tile, budget.max_length)


def _check_pairs(model: Any, dataset: MultimodalDataset, collate_fn: Mapping[str, Any]) -> None:
    """Raises where only some of model, dataset and collate function are for preference pairs.

    Two answers behind each other are also a text that a model can be trained on, so nothing else would notice.
    """
    from ..models import PreferenceModel

    collate = resolve_type(collate_fn.get("type"))
    are_pairs = {
        isinstance(model, PreferenceModel),
        isinstance(dataset, PreferenceDataset),
        collate is collate_pairs,
    }
    if len(are_pairs) > 1:
        found = ", ".join([type(model).__name__, type(dataset).__name__, getattr(collate, "__name__", str(collate))])
        raise ConfigError(
            f"model and train_dataloader don't fit together: {found}. Preference tuning takes PreferenceModel, "
            "PreferenceDataset and collate_pairs; other training takes none of them"
        )


def _check_reference(model: Any) -> None:
    """Raises where validation pairs would be compared with a reference that is no longer there."""
    if getattr(model, "precomputed_reference", False) and not model.reference_is_complete:
        raise ValueError(
            "log probabilities of the reference are computed once for the training pairs only: leave val_data_paths "
            "empty, set precompute_reference = False, or train LoRA with a frozen projector"
        )


def _build_loader(settings: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        DataLoader([0], **{key: value for key, value in settings.items() if key not in LOADER_PARTS})


def _build_optimizer(settings: Mapping[str, Any]):
    wrapper = {key: value for key, value in settings.items() if key not in ("constructor", "paramwise_cfg")}
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper["optimizer"] = OPTIMIZERS.build(dict(wrapper["optimizer"], params=[parameter]))
    max_norm = (wrapper.get("clip_grad") or {}).get("max_norm", 1.0)
    with _refused("optim_wrapper.clip_grad"):
        check_max_norm(max_norm)
    return OPTIM_WRAPPERS.build(dict({"type": "OptimWrapper"}, **wrapper))


def _build_hook(settings: Any) -> None:
    if isinstance(settings, Mapping) and settings:
        if "type" not in settings:
            raise ValueError(f"a hook needs a type, got {dict(settings)!r}; is its name misspelled?")
        HOOKS.build(dict(settings))
