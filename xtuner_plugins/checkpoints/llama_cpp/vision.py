"""The "mmproj" GGUF: InternViT and the projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf

from ...families import encoder_family
from ...hub.constants import IMAGENET_MEAN, IMAGENET_STD, PROJECTOR_TYPES
from ..errors import CheckpointError
from ..formats.official import tile_limits
from ..io.tensors import Joined, LazyTensor
from .language_model import PREFIX

# llama.cpp takes RMSNorm for an encoder of this width and depth, and LayerNorm for every other one.
_RMS_SHAPE = (3200, 45)


def check(config: Mapping[str, Any]) -> None:
    """Whether llama.cpp computes what this model computes.

    Args:
        config: official fields, complete.

    Raises:
        CheckpointError: it would compute something else, without saying so.
    """
    vision = config["vision_config"]
    shape = (vision["hidden_size"], vision["num_hidden_layers"])
    projector = config.get("projector_type") or PROJECTOR_TYPES[0]
    others = {
        f"the encoder {encoder_family(vision).architecture}": not encoder_family(vision).is_intern_vit,
        f"the projector {projector}": projector != PROJECTOR_TYPES[0],
        f"ps_version {config['ps_version']}": config["ps_version"] != "v2",
        f"select_layer {config['select_layer']}": config["select_layer"] not in (-1, vision["num_hidden_layers"]),
        f"hidden_act {vision['hidden_act']}": vision["hidden_act"] not in ("gelu", "silu"),
        f"norm_type {vision['norm_type']} of {shape[1]} layers of width {shape[0]}": (
            (vision["norm_type"] == "rms_norm") != (shape == _RMS_SHAPE)
        ),
    }
    wrong = [name for name, is_other in others.items() if is_other]
    if wrong:
        raise CheckpointError(
            f"llama.cpp can't run {' and '.join(wrong)} (InternViT with pixel shuffle only); tools/web_demo.py runs it"
        )


def add_fields(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Writes sizes, tile limits and normalization.

    Args:
        writer: of the file.
        config: official fields, complete.
    """
    vision = config["vision_config"]
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.INTERNVL)
    writer.add_vision_projection_dim(config["llm_config"]["hidden_size"])
    writer.add_vision_projector_scale_factor(round(1 / config["downsample_ratio"]))
    writer.add_vision_image_size(config["force_image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(list(IMAGENET_MEAN))
    writer.add_vision_image_std(list(IMAGENET_STD))
    add_activation = writer.add_vision_use_gelu if vision["hidden_act"] == "gelu" else writer.add_vision_use_silu
    add_activation(True)
    least, most = tile_limits(config)
    writer.add_vision_preproc_min_tiles(least)
    writer.add_vision_preproc_max_tiles(most)


def tensors(config: Mapping[str, Any], ours: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors by their names in the file; fused qkv becomes three.

    Args:
        config: official fields, complete.
        ours: all tensors of the model, by our names.

    Raises:
        CheckpointError: a name that the architecture doesn't have.
    """
    num_names = max(config["vision_config"]["num_hidden_layers"], 4)  # the projector's layers count up to 3
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, num_names)
    found: dict[str, LazyTensor] = {}
    for key, tensor in ours.items():
        if key.startswith(PREFIX):
            continue
        for theirs, part in _split(_their_name(key), tensor):
            name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise CheckpointError(f"{key} has no name in a GGUF of InternViT")
            found[name] = _class_token_last(part) if name == "v.position_embd.weight" else part
    return found


def _class_token_last(embedding: LazyTensor) -> LazyTensor:
    """Position embeddings ``[1, N + 1, D]`` with the class token's at the end.

    llama.cpp appends the class token to the patches and adds these rows as they lie in the file. In the order of the
    checkpoint, where the class token is the first, each patch would get the position of the one before it.
    """
    rows = embedding.reshape(embedding.shape[1:])
    return Joined([rows.rows(1, rows.shape[0]), rows.rows(0, 1)], embedding.shape)


def _their_name(key: str) -> str:
    """The name that the library's table lists, of one of our names."""
    name = f"vision_tower.{key}" if key.startswith("vision_model.") else key
    bare = name.endswith((".ls1", ".ls2", ".position_embedding"))
    return f"{name}.weight" if bare else name


def _split(name: str, tensor: LazyTensor) -> list[tuple[str, LazyTensor]]:
    """q, k and v of a fused projection ``[3D, ...]``; any other tensor as it is."""
    if ".attn.qkv." not in name:
        return [(name, tensor)]
    size = tensor.shape[0] // 3
    return [
        (name.replace("attn.qkv", f"self_attn.{part}_proj"), tensor.rows(index * size, (index + 1) * size))
        for index, part in enumerate("qkv")
    ]
