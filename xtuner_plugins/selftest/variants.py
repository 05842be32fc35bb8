"""A config made tiny, and the variants of it that must train alike."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..config_file import ConfigError
from ..models.objectives import need_reference
from .samples import Samples

STEP = 8  # samples of an optimizer step
NUM_STEPS = 3
DROPOUT = "lora_dropout"
ON_CPU = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw"}  # pages are those of a GPU
EXACT = "adamw"  # moments in 8 bits turn rounding errors into steps


class Kind(NamedTuple):
    """Names of the classes that belong together in a config, and of the functions that make its batches."""

    model: str
    dataset: str
    collate: str
    collate_packed: str


KINDS = (
    Kind("VisionLanguageModel", "MultimodalDataset", "collate", "collate_packed"),
    Kind("PreferenceModel", "PreferenceDataset", "collate_pairs", "collate_pairs"),
)


def dumped(cfg: Config, folder: Path) -> dict[str, Any]:
    """A config's keys as plain values: its types become names."""
    path = folder / "read.py"
    cfg.dump(str(path))
    return Config.fromfile(str(path), lazy_import=False)._cfg_dict.to_dict()


def source(settings: Mapping[str, Any]) -> str:
    """A config file with these keys. XTuner calls what prepares the process, so that is imported, not named."""
    head = "from xtuner_plugins.engine import prepare_runtime\n\nmodel_resource = dict(fn=prepare_runtime)\n"
    return head + "".join(f"{key} = {value!r}\n" for key, value in settings.items() if key != "model_resource")


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """The kind of a config.

    Raises:
        ConfigError: Another model, or a dataset that isn't this model's.
    """
    found = _class_name(settings, "model")
    for kind in KINDS:
        if kind.model == found:
            break
    else:
        known = " or ".join(kind.model for kind in KINDS)
        raise ConfigError(f"model.type: only configs with {known} can be tested, not {found}")
    dataset = _class_name(settings.get("train_dataloader") or {}, "dataset")
    if dataset != kind.dataset:
        raise ConfigError(
            f"train_dataloader.dataset.type: {found} can be tested with {kind.dataset} only, not {dataset}"
        )
    return kind


def _class_name(settings: Mapping[str, Any], key: str) -> str:
    return str((settings.get(key) or {}).get("type")).rpartition(".")[2]


def check_kind(settings: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a config of another model or dataset, or without the keys that are changed here."""
    kind_of(settings)
    for key in ("optim_wrapper", "train_cfg", "default_hooks"):
        if not settings.get(key):
            raise ConfigError(f"{key}: the config has none")


def shrink(settings: Mapping[str, Any], base: Path, samples: Samples, cache: Path) -> dict[str, Any]:
    """The config on a tiny base and a few samples, in float32, with a log line and no tracker for each step.

    What trains, adapters, quantization, optimizer, rates, clipping, warm-up, tiling and template stay as they are.
    """
    tiny = copy.deepcopy(dict(settings))
    tiny["pretrained_model_name_or_path"] = tiny["model"]["base"] = str(base)
    tiny["model"]["dtype"] = "float32"
    loader = tiny["train_dataloader"]
    loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    loader["dataset"].update(samples.settings, base=str(base), repeat_times=None, reject_list=None)
    loader["dataset"]["cache_dir"] = str(cache)
    tiny["default_hooks"]["logger"]["interval"] = 1
    tiny["default_hooks"]["checkpoint"].update(interval=1000, max_keep_ckpts=-1, save_optimizer=True)
    if "reference" in tiny["default_hooks"]:
        tiny["default_hooks"]["reference"]["folder"] = str(cache / "reference")
    tiny["train_cfg"].update(max_epochs=NUM_STEPS, max_iters=None, heaviest_first=False)
    tiny["visualizer"]["tracker"] = "none"
    optimizer = tiny["optim_wrapper"]["optimizer"]
    optimizer.update({"name": ON_CPU[name]} if (name := optimizer.get("name")) in ON_CPU else {})
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        tiny.pop(key, None)
    return tiny


def whole_steps(tiny: Mapping[str, Any]) -> dict[str, Any]:
    """A variant whose steps are epochs: each has all samples, whatever batches they come in.

    Without dropout, because batches of other shapes draw other random numbers, and with `EXACT` moments.
    """
    made = copy.deepcopy(dict(tiny))
    for part in ("llm_lora", "visual_encoder_lora"):
        if made["model"].get(part):
            made["model"][part][DROPOUT] = 0.0
    if "name" in made["optim_wrapper"]["optimizer"]:
        made["optim_wrapper"]["optimizer"]["name"] = EXACT
    made["train_dataloader"]["sampler"].update(shuffle=False, group_by=None)
    return made


def in_batches(tiny: Mapping[str, Any], batch_size: int, micro_batches: int) -> dict[str, Any]:
    """A variant with padded batches of so many samples, so many of them per step."""
    made = copy.deepcopy(dict(tiny))
    loader = made["train_dataloader"]
    if loader.pop("batch_sampler", None):
        loader["collate_fn"] = dict(type=f"xtuner_plugins.datasets.{kind_of(tiny).collate}")
    loader["batch_size"] = batch_size
    made["optim_wrapper"]["accumulative_counts"] = micro_batches
    return made


def in_packs(tiny: Mapping[str, Any], samples: Samples, micro_batches: int = STEP) -> dict[str, Any]:
    """A variant with packs of a few samples; a step takes as many packs as an epoch can have."""
    made = copy.deepcopy(dict(tiny))
    loader = made["train_dataloader"]
    sampler = dict(loader.get("batch_sampler") or {}, type="xtuner_plugins.datasets.PackBatchSampler")
    longest, most = (max(column) for column in zip(*samples.lengths, strict=True))
    sampler.update(max_tokens=max(2 * longest, 16), max_tiles=max(2 * most, 1))
    collate = dict(type=f"xtuner_plugins.datasets.{kind_of(tiny).collate_packed}")
    loader.update(batch_size=1, batch_sampler=sampler, collate_fn=collate)
    made["optim_wrapper"]["accumulative_counts"] = micro_batches
    return made


def with_witness(tiny: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A variant that writes its gradients to a folder."""
    made = copy.deepcopy(dict(tiny))
    witness = dict(type="xtuner_plugins.selftest.witness.GradientWitness", folder=str(folder))
    made["custom_hooks"] = [*(made.get("custom_hooks") or []), witness]
    return made


def is_packed(settings: Mapping[str, Any]) -> bool:
    """Whether a config trains packs."""
    return bool(settings["train_dataloader"].get("batch_sampler"))


def unsupported(settings: Mapping[str, Any], strategy: str) -> str:
    """Why a config can't be trained under a strategy (``ddp``, ``zero1`` to ``zero3``); '' where it can."""
    quantized = [part for part in ("llm", "visual_encoder") if settings["model"].get(f"{part}_quantization")]
    if strategy == "zero3" and quantized:
        return "ZeRO-3 can't partition packed weights"
    model = settings["model"]
    copied = need_reference(model.get("objectives", {})) and not model.get("precomputed_reference")
    free = [part for part in ("visual_encoder", "projector", "llm") if not model.get(f"freeze_{part}", True)]
    if strategy == "zero3" and copied and free:
        return "ZeRO-3 can't partition the copy of the reference"
    optimizer = settings["optim_wrapper"]["optimizer"].get("name", EXACT)
    if strategy != "ddp" and optimizer != EXACT:
        return f"optimizer={optimizer!r} can't run under DeepSpeed"
    return ""
