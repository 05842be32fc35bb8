"""Model directories of other layouts seen as the one that training runs.

==================  ========================================================  ==============================
layout              how it is recognised                                      what differs
==================  ========================================================  ==============================
``official``        ``vision_config`` + ``llm_config``                        nothing
``internlm2``       the same, ``llm_config.model_type`` internlm2             the LLM runs as Llama, exactly
``native``          ``InternVLForConditionalGeneration`` (an ``-hf`` folder)  names and config
``llava``           ``LlavaForConditionalGeneration`` of CLIP or SigLIP       names and config
==================  ========================================================  ==============================

``open_model`` gives config and tensors in our names, lazily; ``ModelView.stored`` turns tensors back into the
directory's own names, so that an export leaves the layout as it found it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xtuner_plugins import preprocessing
from xtuner_plugins.checkpoints import llava, mappings, native
from xtuner_plugins.checkpoints.reader import CheckpointError, open_weights, read_json
from xtuner_plugins.checkpoints.staging import hint
from xtuner_plugins.checkpoints.tensors import LazyTensor
from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig


@dataclass
class ModelView:
    """A model directory in our names.

    Attributes:
        directory: where it lies.
        layout: ``official``, ``internlm2``, ``native`` or ``llava``.
        config: fields of a ``config.json`` that the hub classes read.
        tensors: our names to lazy tensors.
        stored_config: ``config.json`` as it lies on disk.
        stored_tensors: the directory's own names.
        settled: what ``settle`` laid over the config (``fields``), and which of it is new (``changed``).
    """

    directory: Path
    layout: str
    config: dict
    tensors: dict[str, LazyTensor]
    stored_config: dict
    stored_tensors: dict[str, LazyTensor]
    settled: dict = field(default_factory=dict)

    def settle(self, fields: Mapping) -> None:
        """Lays fields of an official config over what the directory says: a training's tile limits and template."""
        changed = {key for key, value in fields.items() if self.config.get(key) != value}
        self.settled = {"fields": dict(fields), "changed": changed}
        self.config = {**self.config, **fields}

    def stored(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Tensors under our names as the directory names and groups them, in its order."""
        if self.layout == "official":
            back = dict(tensors)
        elif self.layout == "internlm2":
            back = _internlm2(self.stored_config["llm_config"]).to_left(tensors)
        elif self.layout == "llava":
            back = mappings.LLAVA_TYPE_LLAVA.to_right(tensors)
        else:
            back = mappings.OFFICIAL_NATIVE.to_right(tensors)
        return {name: back[name] for name in self.stored_tensors}


def read_fields(directory: str | Path) -> dict:
    """``config.json`` of a model directory.

    Raises:
        CheckpointError: no such directory, or without a config.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"model directory {directory} does not exist{hint(directory)}")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is not a model directory: it has no config.json{hint(directory)}")
    return read_json(directory / "config.json")


def our_config(fields: Mapping, directory: str | Path) -> tuple[str, dict]:
    """(layout, config in our fields) of a ``config.json``; fields that it leaves out as the config class fills them.

    Raises:
        CheckpointError: neither an official nor an ``-hf`` InternVL model, nor a LLaVA one.
    """
    if all(isinstance(fields.get(part), Mapping) for part in ("vision_config", "llm_config")):
        if fields["llm_config"].get("model_type") == "internlm2":
            as_llama = internlm2_config_as_llama(fields["llm_config"])
            return "internlm2", _complete({**fields, "llm_config": as_llama})
        return "official", _complete(fields)
    if fields.get("model_type") == "internvl" and "text_config" in fields:
        return "native", _as_exported(native.to_official_config(fields, directory), directory)
    if fields.get("model_type") == "llava" and "text_config" in fields:
        return "llava", _as_exported(llava.to_official_config(fields, directory), directory)
    raise CheckpointError(
        f"{directory} is not an official InternVL directory (model_type {fields.get('model_type')!r}, without "
        "vision_config and llm_config); make one with tools/build_base_model.py"
    )


def _as_exported(config: dict, directory: str | Path) -> dict:
    """A config with what its form has no fields for (template, thumbnail), where an export of ours wrote it down."""
    path = Path(directory) / preprocessing.FILE
    if path.is_file():
        config.update(preprocessing.exported(read_json(path), str(path)).config_fields())
    return config


def _complete(fields: Mapping) -> dict:
    """An official config with what it leaves out: the defaults of the config classes, which are the official ones."""
    vision = dict(fields["vision_config"])
    if vision.get("model_type") in (None, InternVisionConfig.model_type):
        vision = {**_defaults(InternVisionConfig), **vision}
    complete = {**_defaults(InternVLChatConfig), **fields, "vision_config": vision}
    if complete["force_image_size"] is None:
        complete["force_image_size"] = vision.get("image_size")
    return complete


def _defaults(config_class: type) -> dict:
    """Arguments of a config class that stand for a plain value when they are left out."""
    parameters = inspect.signature(config_class.__init__).parameters.values()
    others = ("vision_config", "llm_config", "projector_type")
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in others}


def open_model(directory: str | Path) -> ModelView:
    """Config and lazy tensors of a model directory of any layout.

    Raises:
        CheckpointError: no model directory, an unknown layout, weights missing.
    """
    directory = Path(directory)
    stored_config = read_fields(directory)
    layout, config = our_config(stored_config, directory)
    stored = open_weights(directory)
    if layout == "internlm2":
        tensors = _internlm2(stored_config["llm_config"]).to_right(stored)
    elif layout == "native":
        tensors = mappings.OFFICIAL_NATIVE.to_left(native.disk_names(stored))
    elif layout == "llava":
        tensors = mappings.LLAVA_TYPE_LLAVA.to_left(stored)
    else:
        tensors = dict(stored)
    return ModelView(directory, layout, config, tensors, stored_config, stored)


def _internlm2(llm_config: Mapping) -> mappings.KeyMapping:
    return mappings.inside(
        mappings.internlm2_llama(llm_config["num_attention_heads"], llm_config["num_key_value_heads"])
    )


def internlm2_config_as_llama(config: Mapping) -> dict:
    """The exact Llama form of an InternLM2 config."""
    dropped = ("bias", "attn_implementation", "auto_map", "architectures", "model_type")
    fields = {k: v for k, v in config.items() if k not in dropped}
    bias = bool(config.get("bias", True))
    return {
        **fields, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": bias,
        "mlp_bias": False,
    }  # fmt: skip


def qwen_config_as_qwen2(config: Mapping) -> dict:
    """The Qwen2 form of a Qwen (v1) config, exact up to ``seq_length``.

    Beyond it the original stretches its rotary base and scales attention with the length; Qwen2 has neither.
    """
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": config["hidden_size"], "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"], "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"], "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_theta": float(config.get("rotary_emb_base", 10000)), "max_position_embeddings": config["seq_length"],
        "vocab_size": config["vocab_size"], "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_sliding_window": False, "initializer_range": config.get("initializer_range", 0.02),
    }  # fmt: skip
