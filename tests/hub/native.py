"""transformers' own InternVL with the weights of one of our models: the independent reference."""

import functools

from transformers import InternVLConfig, InternVLForConditionalGeneration

# Text in a name of ours: what stands there in theirs; in this order.
NAMES = {
    "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding": "model.vision_tower.embeddings.patch_embeddings.projection",
    "vision_model.encoder.layers": "model.vision_tower.encoder.layer",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
    "mlp1.0.": "model.multi_modal_projector.layer_norm.",
    "mlp1.1.": "model.multi_modal_projector.linear_1.",
    "mlp1.3.": "model.multi_modal_projector.linear_2.",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
}
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type")
FIELDS += ("layer_norm_eps", "hidden_act", "num_channels")


def native_config(config, image_token_id):
    """The config of transformers' own class that says the same."""
    vision = config.vision_config
    sizes = dict(image_size=[vision.image_size] * 2, patch_size=[vision.patch_size] * 2)
    kinds = dict(attention_bias=vision.qkv_bias, use_qk_norm=vision.qk_normalization)
    return InternVLConfig(
        vision_config={**{name: getattr(vision, name) for name in FIELDS}, **sizes, **kinds},
        text_config=config.llm_config.to_dict(),
        image_token_id=image_token_id,
        downsample_ratio=config.downsample_ratio,
        vision_feature_layer=config.select_layer,
        tie_word_embeddings=False,
        attn_implementation=config._attn_implementation,
    )


def native_state(state):
    """Renames tensors and takes the fused qkv apart."""
    renamed = {}
    for name, tensor in state.items():
        name = functools.reduce(lambda name, pair: name.replace(*pair), NAMES.items(), name)
        parts = [f".{part}_proj." for part in "qkv"] if ".qkv." in name else [".qkv."]
        renamed |= {
            name.replace(".qkv.", part): rows for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True)
        }
    return renamed


def make_native(model):
    """transformers' own model with the weights of `model`; every tensor must find its place."""
    native = InternVLForConditionalGeneration(native_config(model.config, model.config.llm_config.vocab_size - 1))
    native.float()  # it makes its LLM in the dtype that the LLM's config names
    native.load_state_dict(native_state(model.state_dict()), strict=True)
    return native.eval()
