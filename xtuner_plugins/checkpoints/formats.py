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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xtuner_plugins.checkpoints import llava, mappings, native
from xtuner_plugins.checkpoints.reader import CheckpointError, open_weights, read_json
from xtuner_plugins.checkpoints.tensors import LazyTensor


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
    """

    directory: Path
    layout: str
    config: dict
    tensors: dict[str, LazyTensor]
    stored_config: dict
    stored_tensors: dict[str, LazyTensor]

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
        raise CheckpointError(f"model directory {directory} does not exist")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is not a model directory: it has no config.json")
    return read_json(directory / "config.json")


def our_config(fields: Mapping, directory: str | Path) -> tuple[str, dict]:
    """(layout, config in our fields) of a ``config.json``.

    Raises:
        CheckpointError: neither an official nor an ``-hf`` InternVL model, nor a LLaVA one.
    """
    if "vision_config" in fields and "llm_config" in fields:
        if fields["llm_config"].get("model_type") == "internlm2":
            return "internlm2", {**fields, "llm_config": internlm2_config_as_llama(fields["llm_config"])}
        return "official", dict(fields)
    if fields.get("model_type") == "internvl" and "text_config" in fields:
        return "native", native.to_official_config(fields, directory)
    if fields.get("model_type") == "llava" and "text_config" in fields:
        return "llava", llava.to_official_config(fields, directory)
    raise CheckpointError(
        f"{directory} is not an official InternVL directory (model_type {fields.get('model_type')!r}, without "
        "vision_config and llm_config); make one with tools/build_base_model.py"
    )


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
