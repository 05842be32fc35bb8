"""Tiny chat models for the tests of the hub code, with random weights that make every tensor count."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from xtuner_plugins import hub
from xtuner_plugins.hub import InternVLChatConfig, InternVLChatModel
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.toy.tokenizer import build_tokenizer

TILE = 112  # 8 x 8 patches of 14 pixels, 4 x 4 = 16 image tokens
SIZES = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
SIZES |= dict(image_size=TILE, patch_size=14)
VISION = dict(architectures=["InternVisionModel"], model_type="intern_vit_6b", num_channels=3, **SIZES)
VISION |= dict(norm_type="layer_norm", qkv_bias=True, qk_normalization=False)
RMS_VISION = {**VISION, "norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}
TOWERS = {
    "clip": {"model_type": "clip_vision_model", **SIZES},
    "siglip": {"model_type": "siglip_vision_model", "vision_use_head": False, **SIZES},
}

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


def make_tokenizer(path):
    """The toy tokenizer with the nine image tokens, saved in `path`."""
    build_tokenizer(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    listed = ["<|im_start|>", "<|im_end|>", *ADDED_TOKENS]  # as published: slow tokenizers skip only listed ones
    tokenizer.add_special_tokens({"additional_special_tokens": listed})
    tokenizer.save_pretrained(path)
    tokenizer_json = Path(path) / "tokenizer.json"
    state = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    # Merges as strings: older releases can't read the list form.
    state["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    tokenizer_json.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    return tokenizer


def make_config(vision=VISION, llm=LLM, *, vocab_size=320, **fields):
    """A complete config, `fields` in place of the usual top-level ones."""
    usual = dict(architectures=["InternVLChatModel"], template="internvl2_5", ps_version="v2", force_image_size=TILE)
    usual |= dict(dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=12)
    llm = {**llm, "vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}
    return InternVLChatConfig(dict(vision), llm, **{**usual, **fields})


def llava_config(tower, **fields):
    """A model of LLaVA's kind: CLIP or SigLIP, and the plain projector."""
    plain = dict(select_layer=-2, projector_type="mlp", downsample_ratio=1.0, max_dynamic_patch=1, use_thumbnail=False)
    return make_config(TOWERS[tower], **{**plain, **fields})


def make_model(config=None, seed=0):
    """A model in evaluation mode whose weights keep the variance of what goes through, gains and biases random too."""
    model = InternVLChatModel(make_config() if config is None else config)
    generator = torch.Generator().manual_seed(seed)
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


def make_batch(model, tiles=(2, 1), length=64, seed=1):
    """Pixels and ids of one sample per entry of `tiles`; every sample's image tokens stand at a place of its own."""
    generator = torch.Generator().manual_seed(seed)
    context = model.config.llm_config.vocab_size - 1
    model.img_context_token_id = context
    ids = torch.randint(3, context, (len(tiles), length), generator=generator)
    for row, count in enumerate(tiles):
        ids[row, 3 + row : 3 + row + count * model.num_image_token] = context
    return torch.randn(sum(tiles), 3, TILE, TILE, generator=generator), ids


def code_files():
    """The files that an export ships."""
    return [path for path in sorted(Path(hub.__file__).parent.glob("*.py")) if path.name != "__init__.py"]


def write_directory(path, config, tokenizer_dir):
    """Writes an official directory by hand: weights, config, tokenizer and copies of the code."""
    model = make_model(config)
    shutil.copytree(tokenizer_dir, path)
    for file in code_files():
        shutil.copy(file, path)
    named = dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "modeling_internvl_chat.InternVLChatModel")
    config.auto_map = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig", **named}
    config.torch_dtype = "float32"
    config.save_pretrained(path)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path
