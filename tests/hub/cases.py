"""Tiny chat models for the tests of the hub code, with random weights that make every tensor count."""

import math

import torch

from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig
from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel

TILE = 112  # 8 x 8 patches of 14 pixels, 4 x 4 = 16 image tokens
SIZES = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
SIZES |= dict(image_size=TILE, patch_size=14)
VISION = dict(architectures=["InternVisionModel"], model_type="intern_vit_6b", num_channels=3, **SIZES)
VISION |= dict(norm_type="layer_norm", qkv_bias=True, qk_normalization=False)
RMS_VISION = {**VISION, "norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}

LLM = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=32, intermediate_size=64)
LLM |= dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_act="silu", rms_norm_eps=1e-6)
LLM |= dict(max_position_embeddings=2048, rope_theta=1000000.0, rope_scaling=None, torch_dtype="bfloat16")


def _llm(kind, architecture, **fields):
    return {**LLM, "architectures": [f"{architecture}ForCausalLM"], "model_type": kind, **fields}


LLMS = {
    "qwen2": LLM,
    "qwen3": _llm("qwen3", "Qwen3", head_dim=16),
    "llama": _llm("llama", "Llama", rope_scaling={"type": "dynamic", "factor": 2.0}),
    "phi3": _llm("phi3", "Phi3", rope_theta=1e4, original_max_position_embeddings=2048, sliding_window=None),
}


def make_config(vision=VISION, llm=LLM, *, vocab_size=320, **fields):
    """A complete config, `fields` in place of the usual top-level ones."""
    usual = dict(architectures=["InternVLChatModel"], template="internvl2_5", ps_version="v2", force_image_size=TILE)
    usual |= dict(dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=12)
    llm = {**llm, "vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}
    return InternVLChatConfig(dict(vision), llm, **{**usual, **fields})


def make_model(config=None):
    """A model in evaluation mode whose weights keep the variance of what goes through, gains and biases random too."""
    model = InternVLChatModel(make_config() if config is None else config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_gain = name.endswith((".ls1", ".ls2", "mlp1.0.weight")) or ("norm" in name and "bias" not in name)
                parameter.copy_(0.1 * values + (1.0 if is_gain else 0.0))
            elif name.endswith("_embedding") or "embed_tokens" in name:
                parameter.copy_(0.5 * values)
            else:
                parameter.copy_(values / math.sqrt(parameter[0].numel()))
    return model.eval()


def make_pixels(count=2, side=TILE):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def make_batch(model, tiles=(2, 1), length=64):
    """Pixels and ids of one sample per entry of `tiles`; every sample's image tokens stand at a place of its own."""
    context = model.config.llm_config.vocab_size - 1
    model.img_context_token_id = context
    ids = torch.randint(3, context, (len(tiles), length), generator=torch.Generator().manual_seed(1))
    for row, count in enumerate(tiles):
        ids[row, 3 + row : 3 + row + count * model.num_image_token] = context
    return make_pixels(sum(tiles)), ids
