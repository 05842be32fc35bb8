"""What every config of XTuner 0.2.0 says in the same way: batches, LoRA, optimizer, schedule, checkpoints.

Values are taken from what XTuner would build (``model``, ``train_dataloader``, ...) and not from the settings above it,
so an edited config is read as it would train. What has no counterpart here becomes a note. Nothing is built, and
nothing that the config imports is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..settings import RUNNER_KEYS, SETTINGS, ConfigError, read_config, value_at
from .derived import Code, literal

# XTuner's name of a chat template: ours.
TEMPLATES = {
    "internlm2_chat": "internlm2-chat",
    "llama3_chat": "llama3-chat",
    "phi3_chat": "phi3-chat",
    "vicuna": "vicuna_v1.1",
}
FOUR_BITS = Code(
    'dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)'
)
PARENTS = {"all": "finetune_full", "lora": "finetune_lora", "frozen": "pretrain_mlp"}  # by what of the LLM trains
_WORDS = {"visual_encoder": "vision encoder", "projector": "projector", "llm": "LLM"}
# Keys of the runner that need no note at these values, because the values say what happens here too.
_STANDARD = {
    "env_cfg": {
        "cudnn_benchmark": False,
        "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
        "dist_cfg": {"backend": "nccl"},
    },
    "log_level": "INFO",
    "log_processor": {"by_epoch": False},
    "randomness": {"seed": None, "deterministic": False},
}
_OWN_DEFAULTS = {"dtype": "auto"}  # of our classes, at which a config needn't name a setting
_READ = {"model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks", "custom_hooks"}
_HOOKS = {
    "timer": "IterTimerHook",
    "logger": "LoggerHook",
    "param_scheduler": "ParamSchedulerHook",
    "checkpoint": "CheckpointHook",
    "sampler_seed": "DistSamplerSeedHook",
}


class XTunerConfig:
    """The values of a config, and notes of what is left; a class per kind of model says the rest.

    Attributes:
        notes: What could not be carried over, or means something else here; one line each.
        advice: What to do before the first run.
        parent, changes, labels, imports: Of the config that says the same, as `derived.derive` takes them.
    """

    model_type: str
    dataset_type: str
    processes = 8  # of XTuner's own launch lines

    def __init__(self, path: str, cfg: Mapping[str, Any]):
        self.path, self.cfg = path, cfg
        self.notes: list[str] = []
        self.advice: list[str] = []
        self.model = cfg["model"]

    def base(self, given: str | None) -> tuple[str, tuple[str, ...]]:
        """The directory to train from, and where it comes from: lines of the docstring."""
        raise NotImplementedError

    def quantized(self) -> tuple[str, ...]:
        """The parts held in 4 bits."""
        raise NotImplementedError

    def files(self, part: Mapping[str, Any]) -> tuple[list, list, list]:
        """(annotation files, image folder of each, how often each is used) of one dataset."""
        raise NotImplementedError

    def data_settings(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Lengths, tiles and template."""
        raise NotImplementedError

    def section(self, *keys: str) -> Any:
        node = self.cfg
        for key in keys:
            if not isinstance(node, Mapping) or key not in node:
                raise ConfigError(f"config {self.path} has no {'.'.join(keys)}")
            node = node[key]
        return node

    def note(self, text: str) -> None:
        self.notes.append(text)

    def leave(self, where: str, node: Mapping[str, Any], read: Sequence[str]) -> None:
        """Notes every key of a node that nothing reads."""
        for key in node:
            if key not in ("type", *read) and node[key] is not None:
                self.note(f"{where}.{key}={short(node[key])} is not carried over")

    def derive(self, base: str | None) -> None:
        """Reads all of it: sets `parent`, `changes`, `labels` and `imports` of the config that says the same."""
        llm = "lora" if self.model.get("llm_lora") else "frozen" if self.model.get("freeze_llm") else "all"
        quantized, encoder = self.quantized(), self.encoder()
        in_parent = ("llm",) if llm == "lora" and "llm" in quantized else ()
        self.parent = "finetune_qlora" if in_parent else PARENTS[llm]
        starts_from, origin = self.base(base)
        self.changes = {"model.base": starts_from}
        if encoder == "all":
            self.changes["model.freeze_visual_encoder"] = False
        settings = self.data() | self.lora() | self.batch() | self.optimizer() | self.schedule() | self.saving()
        for part in quantized:
            if part not in in_parent:
                self.changes[f"model.{part}_quantization"] = FOUR_BITS
        present = read_config(self.parent)
        for name, value in settings.items():
            key = SETTINGS[name].key if name in SETTINGS else name
            if value != value_at(present, key, _OWN_DEFAULTS.get(name)):
                self.changes[key] = value
        self.imports = [
            f"from {package} import {name}"
            for package, name in (("peft", "LoraConfig"), ("transformers", "BitsAndBytesConfig"))
            if any(isinstance(value, Code) and name in value for value in self.changes.values())
        ]
        self.rest()
        states = {"visual_encoder": encoder, "projector": "all", "llm": llm}
        trains = [_WORDS[part] for part, state in states.items() if state == "all"]
        trains += [f"LoRA on the {_WORDS[part]}" for part, state in states.items() if state == "lora"]
        frozen = [_WORDS[part] for part, state in states.items() if state == "frozen"]
        frozen += [f"the {_WORDS[part]}'s own weights" for part, state in states.items() if state == "lora"]
        self.labels = {
            "title": f"As XTuner's {Path(self.path).name} trains it.",
            "trains": ", ".join(trains),
            "frozen": ", ".join(frozen) or "nothing",
            "starts from": origin,
            "data": ", ".join(self.paths) + (f"; images in {', '.join(self.folders)}" if self.folders else ""),
            "hardware": f"{self.processes} GPU{'s' if self.processes > 1 else ''}; not run yet",
            "launch": "",
            "differs": self.notes,
        }

    def encoder(self) -> str:
        """What of the vision encoder trains: `frozen`, `all` or `lora`."""
        if self.model.get("visual_encoder_lora"):
            return "lora"
        return "frozen" if self.model.get("freeze_visual_encoder") else "all"

    def lora(self) -> dict[str, Any]:
        """The LoRA settings of LLM and encoder."""
        values = {}
        for part in ("llm", "visual_encoder"):
            node = self.model.get(f"{part}_lora")
            if not node:
                continue
            read = ["r", "lora_alpha", "lora_dropout", "target_modules", "task_type"]
            self.leave(f"model.{part}_lora", node, [*read, *(["bias"] if node.get("bias") == "none" else [])])
            own = {"r": node.get("r", 8), "lora_alpha": node.get("lora_alpha", 8)}
            own |= {"lora_dropout": node.get("lora_dropout", 0.0), "target_modules": node.get("target_modules")}
            if part == "llm":
                values |= {f"model.llm_lora.{name}": value for name, value in own.items()}
            else:
                words = ", ".join(f"{name}={literal(value)}" for name, value in own.items() if value is not None)
                values["model.visual_encoder_lora"] = Code(f"dict(type=LoraConfig, {words})")
            if (targets := node.get("target_modules")) is not None:
                self.note(f"model.{part}_lora.target_modules={short(targets)}: layers may have other names here")
        return values

    def data(self) -> dict[str, Any]:
        """The settings of a dataset; sets `paths` and `folders`."""
        dataset = self.section("train_dataloader", "dataset")
        parts, used = [dataset], []
        if isinstance(dataset.get("datasets"), (list, tuple)):
            self.leave("train_dataloader.dataset", dataset, ["datasets"])
            parts = dataset["datasets"]
        for part in parts:
            if str(part.get("type")) == self.dataset_type:
                used.append(part)
            else:
                self.note(f"dataset {part.get('type')} is not carried over: {short(dict(part))}")
        if not used:
            raise ConfigError(f"config {self.path}: dataset {dataset.get('type')}; {self.dataset_type} is read")
        paths, folders, repeats = [], [], []
        for part in used:
            of_part = self.files(part)
            paths, folders, repeats = paths + of_part[0], folders + of_part[1], repeats + of_part[2]
        settings = self.data_settings(used)
        if any(repeat != 1 for repeat in repeats):
            settings["repeat_times"] = repeats
            if any(repeat > 1 and repeat % 1 for repeat in repeats):
                self.note(f"repeat_times={repeats}: XTuner drops the fraction of a number above 1; here it counts")
        paths, folders = list(map(_absolute, paths)), list(map(_absolute, folders))
        self.paths, self.folders = paths, list(dict.fromkeys(filter(None, folders)))
        return {"data_paths": paths, "image_folders": folders, **settings}

    def common(self, parts: Sequence[Mapping], key: str, default: Any) -> Any:
        """The value that all datasets of a list share; the first one's, with a note, where they don't."""
        values = [part.get(key, default) for part in parts]
        if any(str(value) != str(values[0]) for value in values):
            self.note(f"dataset.{key}: {short(values[0])} for every file; {short(values[1:])} is not carried over")
        return values[0]

    def batch(self) -> dict[str, Any]:
        loader = self.section("train_dataloader")
        self.leave("train_dataloader", loader, "batch_size num_workers dataset sampler collate_fn pin_memory".split())
        sampler = loader.get("sampler") or {}
        if sampler:
            by_length = "sampler=dict(type=PlanSampler, group_by='modality') groups by length"
            self.note(f"sampler {sampler.get('type')}: random order here; {by_length}")
            if str(sampler.get("type")) != "LengthGroupedSampler":
                self.leave("train_dataloader.sampler", sampler, [])
        collate = (loader.get("collate_fn") or {}).get("type", "default_collate_fn")
        if str(collate) != "default_collate_fn":
            self.note(f"train_dataloader.collate_fn {collate} is not carried over")
        return {
            "batch_size": loader.get("batch_size", 1),
            "accumulative_counts": self.section("optim_wrapper").get("accumulative_counts", 1),
            "num_workers": loader.get("num_workers", 0),
        }

    def optimizer(self) -> dict[str, Any]:
        wrapper, optimizer = self.section("optim_wrapper"), self.section("optim_wrapper", "optimizer")
        self.leave("optim_wrapper", wrapper, "optimizer clip_grad accumulative_counts loss_scale dtype".split())
        self.leave("optim_wrapper.optimizer", optimizer, ["lr", "betas", "weight_decay"])
        if str(optimizer.get("type")) != "AdamW":
            self.note(f"optimizer {optimizer.get('type')} is not carried over; it is AdamW here")
        settings = {
            "lr": optimizer.get("lr", 1e-3),  # the defaults are AdamW's
            "betas": tuple(optimizer.get("betas", (0.9, 0.999))),
            "weight_decay": optimizer.get("weight_decay", 0.01),
            "dtype": "bfloat16" if wrapper.get("dtype") == "bfloat16" else "auto",
        }
        if settings["weight_decay"]:
            self.note(f"weight_decay={settings['weight_decay']}: not on norms and biases here; XTuner decays them too")
        given = ", ".join(f"{key}={short(wrapper[key])}" for key in ("dtype", "loss_scale") if key in wrapper)
        if settings["dtype"] == "auto" or "loss_scale" in wrapper:
            words = f"{wrapper.get('type')} with {given or 'no dtype'}"
            self.note(f"optim_wrapper {words}: dtype={settings['dtype']!r} without loss scaling here")
        clip = wrapper.get("clip_grad") or {}
        self.leave("optim_wrapper.clip_grad", clip, ["max_norm", "error_if_nonfinite"])
        if "max_norm" in clip:
            settings["max_grad_norm"] = float(clip["max_norm"])
        else:
            self.note("optim_wrapper has no clip_grad.max_norm; max_grad_norm stays 1")
        return settings

    def schedule(self) -> dict[str, Any]:
        train = self.section("train_cfg")
        self.leave("train_cfg", train, ["max_epochs", "max_iters", "by_epoch"])
        if str(train.get("type", "TrainLoop")) not in ("TrainLoop", "None"):
            self.note(f"train_cfg {train['type']} is not carried over; it is PlannedTrainLoop here")
        settings = {"max_epochs": train.get("max_epochs")}
        accumulation = self.section("optim_wrapper").get("accumulative_counts", 1)
        if train.get("max_iters") is not None:
            settings["max_steps"] = math.ceil(train["max_iters"] / accumulation)
            self.note(f"max_iters={train['max_iters']} counts micro-batches: max_steps={settings['max_steps']} here")
        schedulers = as_list(self.cfg.get("param_scheduler") or [])
        by_kind = {str(scheduler.get("type")): scheduler for scheduler in schedulers}
        if list(by_kind) != ["LinearLR", "CosineAnnealingLR"] or len(schedulers) != 2:
            self.note(f"param_scheduler {', '.join(by_kind) or 'none'}: a linear start and a cosine to 0 here")
        warmup, cosine = by_kind.get("LinearLR"), by_kind.get("CosineAnnealingLR", {})
        if warmup is None:
            settings["warmup_ratio"] = 0.0
        elif warmup.get("by_epoch") and warmup.get("end") is not None and settings["max_epochs"]:
            settings["warmup_ratio"] = float(f"{warmup['end'] / settings['max_epochs']:.6g}")
            if cosine and (cosine.get("begin"), cosine.get("end")) != (warmup["end"], settings["max_epochs"]):
                span = f"{cosine.get('begin')} to {cosine.get('end')}"
                self.note(f"param_scheduler: the cosine goes from epoch {span}; here over all after the warm-up")
        else:
            self.note(f"param_scheduler: a warm-up until {warmup.get('end')} has no share of the run; set warmup_ratio")
        if cosine.get("eta_min"):
            self.note(f"param_scheduler: eta_min={cosine['eta_min']} is not carried over; the cosine ends at 0")
        return settings

    def saving(self) -> dict[str, Any]:
        hooks = self.cfg.get("default_hooks") or {}
        for name, hook in hooks.items():
            if hook and str(hook.get("type")) != _HOOKS.get(name):
                self.note(f"default_hooks.{name} {hook.get('type')} is not carried over")
        if (interval := (hooks.get("logger") or {}).get("interval", 10)) != 10:
            self.note(f"default_hooks.logger.interval={interval} is not carried over; --cfg-options sets it")
        checkpoint = hooks.get("checkpoint") or {}
        read = ["by_epoch", "interval", "max_keep_ckpts", "save_optimizer"]
        self.leave("default_hooks.checkpoint", checkpoint, read)
        settings = {"save_total_limit": checkpoint.get("max_keep_ckpts", -1)}
        if checkpoint.get("save_optimizer") is False:
            self.note("save_optimizer=False: checkpoints hold the optimizer here, so that they can be resumed")
        if checkpoint.get("by_epoch", True) or "interval" not in checkpoint:
            self.note("default_hooks.checkpoint saves by epoch; save_steps stays 500")
            return settings
        accumulation = self.section("optim_wrapper").get("accumulative_counts", 1)
        if accumulation > 1:
            self.note(
                f"save_steps={checkpoint['interval']} counts optimizer steps here, micro-batches ({accumulation} of a "
                "step) in XTuner"
            )
        return {"save_steps": checkpoint["interval"], **settings}

    def rest(self) -> None:
        """Notes hooks, and all keys of the runner that nothing has read."""
        for hook in self.cfg.get("custom_hooks") or ():
            self.note(f"custom_hooks: {hook.get('type')} is not carried over")
        for key in sorted(RUNNER_KEYS - _READ):
            value = self.cfg.get(key)
            if value and value != _STANDARD.get(key):
                self.note(f"{key}={short(value)} is not carried over")


def as_list(value: Any) -> list[Any]:
    """A list as it is, and one of any other value."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _absolute(path: str | None) -> str | None:
    """So that the run may be started in any directory."""
    return path if path is None or "://" in path else os.path.abspath(path)


def short(value: Any) -> str:
    """A value in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
