"""Models of published sizes with random weights: no base directory is read, and nothing is downloaded."""

import functools
from types import SimpleNamespace
from unittest import mock

import torch

from xtuner_plugins.families import PARTS, families_of
from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig
from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel
from xtuner_plugins.models import vlm
from xtuner_plugins.models.trainable import build_quantization_config, linear_quantizer
from xtuner_plugins.planning.published import Base


def config_of(base: Base, blocks: int | None = None) -> InternVLChatConfig:
    """The `config.json` of a base, as far as shapes depend on it; with so many blocks in both parts."""
    fields, fewer = base.config, {"num_hidden_layers": blocks} if blocks else {}
    parts = {part: {**fields.pop(part), **fewer} for part in ("vision_config", "llm_config")}
    size = parts["vision_config"]["image_size"]
    return InternVLChatConfig(**parts, **fields, force_image_size=size, template=base.template, ps_version="v2")


@functools.cache
def meta_model(base: Base) -> InternVLChatModel:
    """The model of a base at its true size, without storage."""
    with torch.device("meta"):
        return InternVLChatModel(config_of(base))


def build_random(config, settings, dtype: str, device: torch.device) -> vlm.VisionLanguageModel:
    """The model on the meta device, or with random weights on another, where quantized parts are packed."""

    def load(base, dtype, quantized):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        quantized = {part: options for part, options in quantized.items() if options}
        try:
            model = InternVLChatModel(config)
        finally:
            torch.set_default_dtype(default)
        families = families_of(config.to_dict())
        for part, options in quantized.items():
            packed = build_quantization_config(options, part)
            pack = linear_quantizer(PARTS[part].attribute, families[part].packed_linears, packed, dtype)
            for name in [name for name, _ in model.named_modules()]:
                pack(model, name)
        return model

    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: 0)
    settings = {**settings, "dtype": dtype}
    with (
        mock.patch.object(vlm, "_load", load),
        mock.patch.object(vlm, "load_tokenizer", lambda base: tokenizer),
        device,
    ):
        return vlm.VisionLanguageModel(**{key: value for key, value in settings.items() if key != "type"}).train()
