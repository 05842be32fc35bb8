"""What a training checkpoint changes in its base: names checked, shapes checked, adapters paired with their settings.

A checkpoint holds what was trained, under ``model.`` + the official name, and the record of its run::

    model.mlp1.1.weight                                                      replaces mlp1.1.weight
    model.language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight    merged into ...q_proj.weight
    model.language_model.model.embed_tokens.token_adapter.trainable_tokens_delta.default    rows, laid into the matrix
    model.language_model.lm_head.modules_to_save.default.weight              replaces language_model.lm_head.weight
    model.language_model.model.layers.0.self_attn.q_proj.base_layer.weight   frozen, under LoRA: the base has it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..families import PARTS
from ..weights import merge, preprocessing, record, tokenizer_files
from ..weights.checkpoint import open_checkpoint
from ..weights.errors import from_outside
from ..weights.lazy import LazyTensor
from ..weights.loader import build, stop_at
from ..weights.model_view import ModelView, open_model
from ..weights.reading import Checkpoint, CheckpointError
from . import draft
from .base import towers

HEAD = "language_model.lm_head.weight"
# What only repeats the base, or is no weight: mean and std of the pixels, PEFT's originals
_REPEATED = ("data_preprocessor.", merge.ORIGINAL, ".original_module.")


@dataclass
class TrainedPlan:
    """A base and what a checkpoint lays over it; nothing is read yet.

    Attributes:
        view: the base, seen in our names.
        checkpoint: what was opened; None where nothing is laid over it.
        record: of the run, see ``record.py``.
        replaced: tensors that replace a base tensor, by official name.
        adapters: official layer name to adapter tensors by part (``lora_A.weight``, ...).
        token_rows: official layer name to its trained rows and their indices.
        lora_configs: model part (``language_model``, ``vision_model``) to its LoRA settings.
        preprocessing: what the training did to images and text; None if the checkpoint doesn't say.
        notes: what a user should know about the preprocessing.
    """

    view: ModelView
    checkpoint: Checkpoint | None = None
    record: dict | None = None
    replaced: dict[str, LazyTensor] = field(default_factory=dict)
    adapters: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    token_rows: dict[str, tuple[LazyTensor, list[int]]] = field(default_factory=dict)
    lora_configs: dict[str, merge.Lora] = field(default_factory=dict)
    preprocessing: dict | None = None
    notes: list[str] = field(default_factory=list)

    def settle(self, template: str | None = None, max_tiles: int | None = None) -> TrainedPlan:
        """Writes the template and the tile limits of the training into the view's config; returns itself.

        Args:
            template: which one, if the training used several.
            max_tiles: which tile limit, if the training used several; None takes the largest.

        Raises:
            CheckpointError: several templates and none chosen, or a choice that the training didn't use.
        """
        if self.preprocessing is None:
            if template or max_tiles:
                raise CheckpointError("--template and --max-tiles: the checkpoint names none to choose from")
            return self
        choice, note = preprocessing.choose(self.preprocessing, template=template, max_tiles=max_tiles)
        self.notes += [note] if note else []
        self.preprocessing = {**self.preprocessing, "exported": asdict(choice)}
        view, fields = self.view, choice.config_fields(self.view.config)
        view.settled = {key: value for key, value in fields.items() if view.config.get(key) != value}
        view.config = {**view.config, **fields}
        return self

    def tensors(self, *, merged: bool) -> dict[str, LazyTensor]:
        """Every tensor of the trained model in the base's order; unchanged ones are the base's own objects.

        Args:
            merged: merge adapters (giving fp32) and token rows into the weights; False leaves them out.
        """
        result = self.view.tensors | self.replaced
        for layer, parts in self.adapters.items() if merged else ():
            name, config = f"{layer}.weight", self.lora_configs[layer.partition(".")[0]]
            result[name] = merge.merged_weight(result[name], parts, config, layer)
        for layer, (rows, indices) in self.token_rows.items() if merged else ():
            name = f"{layer}.weight"
            result[name] = merge.with_rows(result[name], rows, indices, name)
        return result

    def live_tensors(self) -> dict[str, LazyTensor]:
        """The tensors of adapters and trained rows, by official name without that of the adapter."""
        held = {f"{layer}.{kind}": each for layer, parts in self.adapters.items() for kind, each in parts.items()}
        return held | {f"{layer}.{merge.TOKEN_ROWS}": rows for layer, (rows, _) in self.token_rows.items()}

    def peft_config(self, part: str, **changes):
        """The ``peft.LoraConfig`` of a part's adapters, which names the layers and rows that they are of."""
        from peft import LoraConfig

        rows = {layer: indices for layer, (_, indices) in inside(self.token_rows, part).items()}
        # Whole tensors are replaced.
        unset = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"))
        named = {"target_modules": sorted(inside(self.adapters, part)), "trainable_token_indices": rows or None}
        return LoraConfig(**{**self.lora_configs[part].options, **unset, **named, **changes})


def read_training_config(cfg):
    """The ``mmengine.Config`` of a path, or the one given; refuses one that can't be read, or has no ``model.base``."""
    from ..settings import read_config  # takes in MMEngine

    found = read_config(str(cfg)) if isinstance(cfg, (str, Path)) else cfg
    if not (found.get("model") or {}).get("base"):
        raise CheckpointError(f"{found.filename or 'the config'} has no model.base, from which training started")
    return found


def lay_over(cfg, checkpoint: str | Path) -> TrainedPlan:
    """Lays a checkpoint over its base, with the settings that it was trained with.

    Args:
        cfg: ``mmengine.Config`` or path, which says where the base lies now; None looks where it lay. What it sets
            differently than the checkpoint's record is noted, and the checkpoint counts.
        checkpoint: MMEngine ``.pth``, DeepSpeed directory, or a directory that ``export_adapter`` has written.

    Raises:
        ConfigError: no such config, or unreadable.
        CheckpointError: no record; another base than the one that was trained on; tensors that the base lacks or has in
            other shapes, or adapters that no setting names; or a trained part is lacking.
    """
    cfg = None if cfg is None else read_training_config(cfg)
    opened, where = open_checkpoint(checkpoint), str(checkpoint)
    if (said := opened.run.get(record.KEY)) is None:
        told = "(saved up to 0.1.0, without StateHook, or it was removed), so nothing tells its base and settings"
        raise CheckpointError(f"{where} holds no record of its run {told}; export it with the version that wrote it")
    with from_outside(f"{where}: the record of its run"):
        model, base = said["settings"]["model"], _find_base(said["base"], cfg, where)
        configs = {row.attribute: merge.read_settings(model.get(f"{part}_lora")) for part, row in PARTS.items()}
    with from_outside(where):
        plan = TrainedPlan(open_model(base), opened, said)
        plan.lora_configs = {part: config for part, config in configs.items() if config is not None}
        plan.notes += _differing_settings(model, opened.run.get(preprocessing.KEY) or {}, cfg) if cfg else []
        _sort_tensors(plan)
        _check_parts(plan, model)
        plan.tensors(merged=True)  # checks shapes and ranks of adapters
    if not (lock := opened.run.get(preprocessing.KEY)):
        plan.notes.append(f"{where} doesn't say how images and text were prepared: tiles and template are the base's")
        return plan
    plan.preprocessing = preprocessing.checked(lock, tokenizer_files.load_tokenizer(base), where)
    return plan


def _find_base(said: Mapping, cfg, where: str) -> Path:
    """The directory of a record's base, where the config or the record itself says; errors as for `lay_over`."""
    places = [*([cfg.model.base] if cfg else []), said["path"]]
    base = next((Path(each) for each in places if Path(each).is_dir()), None)
    if base is None:
        told = f"the base of {where} does not exist: {' nor '.join(places)}"
        raise CheckpointError(f"{told}; give a config that names where it is now (--set base=...)")
    if other := record.base_difference(said, record.base_facts(base)):
        raise CheckpointError(f"{where} belongs to another base: {other}; give the base that it was trained on")
    return base


def _differing_settings(trained: Mapping, lock: Mapping, cfg) -> list[str]:
    """A line where a config sets another model, tiles or template than were trained.

    The record also holds defaults that no config names, and the lock has tiles and template of each file.
    """
    whole = cfg._to_lazy_dict()
    held, given = (record.flat(record.plain(model)) for model in (trained, whole["model"]))
    keys = [key for key in {**given, **held} if key in given or key.partition(".")[0].endswith("_lora")]
    counts = [key for key in keys if key != "dtype" and not f"model.{key}".startswith(record.NEUTRAL)]
    pairs = {key: (held.get(key), given.get(key)) for key in counts}
    data = (whole.get("train_dataloader") or {}).get("dataset") or {}
    for key in filter(data.__contains__, preprocessing.SETTINGS):
        rules = [rule[key] for rule in lock.get("datasets", ())]
        pairs |= {key: (rules[0], data[key])} if rules and data[key] not in (None, *rules) else {}
    found = [f"{key}={a!r} (the config: {b!r})" for key, (a, b) in pairs.items() if a != b and (a or b)]
    return [f"the checkpoint counts, which was trained with {', '.join(found)}"] if found else []


def _sort_tensors(plan: TrainedPlan) -> None:
    """Deals the checkpoint's tensors out to what replaces, adapters and rows; `CheckpointError` for another model's."""
    base, wrong, where = plan.view.tensors, [], str(plan.checkpoint.path)
    for stored, tensor in plan.checkpoint.tensors.items():
        name = stored.removeprefix("module.").removeprefix("model.")  # the wrappers of training
        layer, part = merge.split_key(name) or ("", "")
        inner = name.replace(".modules_to_save.default.", ".").replace(merge.BASE_LAYER, ".")
        own = f"{layer}.weight" if layer else inner.replace(".base_layer.", ".")
        is_frozen = own != inner and (own not in base or not tensor.dtype.is_floating_point)  # maybe in 4 bits
        if any(each in name for each in _REPEATED) or is_frozen and not layer:
            continue
        if own not in base:
            wrong.append(f"{stored} (unknown to the base)")
        elif part == merge.TOKEN_ROWS:
            root, _, within = layer.partition(".")
            plan.token_rows[layer] = (tensor, merge.token_indices(plan.lora_configs.get(root), within, where))
        elif layer:
            plan.adapters.setdefault(layer, {})[part] = tensor
        else:
            plan.replaced[own] = tensor
            if tensor.shape != base[own].shape or not tensor.dtype.is_floating_point:
                wrong.append(f"{stored} is {tensor}, the base has {base[own]}")
    if said := "; ".join(wrong[:3]):
        told = f"{where} is a checkpoint of another model than {plan.view.directory}"
        raise CheckpointError(f"{told}: {said} ({len(wrong)} in all)")


def _check_parts(plan: TrainedPlan, model: Mapping) -> None:
    """Checks that each part that the run trained is complete, and that its settings name each adapter."""
    for key, (part, *_) in PARTS.items():
        lora, rows = plan.lora_configs.get(part), inside(plan.token_rows, part)
        adapted, lacking = rows or inside(plan.adapters, part), _lacking(plan, model, key)
        cases = {
            f"it holds LoRA tensors of {part}, but its run set no model.{key}_lora": adapted and not lora,
            f"its run trained {part} with model.{key}_lora, but it holds no LoRA tensor of it": lora and not adapted,
            f"its run trained rows of {part}, but it holds none": lora and lora.trainable_token_indices and not rows,
            f"its run trained {part}, but it lacks {len(lacking)} of its tensors: {''.join(lacking[:1])}": lacking,
        }
        if wrong := [text for text, is_so in cases.items() if is_so]:
            raise CheckpointError(f"{plan.checkpoint.path} isn't whole: {wrong[0]}")


def _lacking(plan: TrainedPlan, model: Mapping, key: str) -> list[str]:
    """Tensors of a part that the run trained themselves, not by adapters, and that the checkpoint lacks."""
    (part, _, is_frozen), last, config = PARTS[key], model.get("visual_encoder_last_layers"), plan.view.config
    names = [name for name in plan.view.tensors if name.startswith(part + ".") and name not in plan.replaced]
    if not model.get(f"freeze_{key}", is_frozen):
        return [name for name in names if not towers.is_unused(name, config)]
    if part == "vision_model" and last is not None:
        return [name for name in names if towers.is_in_last_layers(name, config, last)]
    return [name for name in names if name == HEAD and model.get("train_head")]


def inside(held: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What is held of the layers of a part, by their names inside it."""
    return {name.partition(".")[2]: each for name, each in held.items() if name.startswith(f"{part}.")}


def attach_adapters(model, plan: TrainedPlan) -> None:
    """Injects live adapters into a loaded hub model and fills them from the checkpoint (fp32)."""
    from peft import inject_adapter_in_model

    for part in plan.lora_configs:
        root = model.get_submodule(part)
        inject_adapter_in_model(plan.peft_config(part, init_lora_weights=False), root, merge.ADAPTER_NAME)
        live = dict(root.named_parameters())
        for name, tensor in inside(plan.live_tensors(), part).items():
            where, dot, leaf = name.partition(".weight")
            live[f"{where}.{merge.ADAPTER_NAME}{dot}{leaf}"].data = tensor.read().float()


def build_trained(plan: TrainedPlan, *, dtype: torch.dtype | None, device="cpu"):
    """The merged model of a settled plan: an ``InternVLChatModel`` in eval mode.

    Args:
        plan: from ``lay_over``.
        dtype: of the loaded parameters; None keeps the base's. Adapters are merged in fp32 and cast once.
        device: where to put them.
    """
    tensors = plan.tensors(merged=True)
    model = build(plan.view.config, tensors, str(plan.checkpoint.path), dtype=dtype, device=device)
    stop_at(model, draft.exported_stops(plan.view))  # as the export
    return model
