"""transformers' own InternVL with the weights of one of our models: the independent reference."""

from transformers import InternVLConfig, InternVLForConditionalGeneration

VISION_NAMES = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding": "embeddings.patch_embeddings.projection",
    "encoder.layers": "encoder.layer",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
}
OTHER_NAMES = {
    "mlp1.0.": "model.multi_modal_projector.layer_norm.",
    "mlp1.1.": "model.multi_modal_projector.linear_1.",
    "mlp1.3.": "model.multi_modal_projector.linear_2.",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
}


def native_config(config, image_token_id):
    """The config of transformers' own class that says the same."""
    vision = config.vision_config
    fields = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("norm_type", "layer_norm_eps", "hidden_act", "num_channels"),
    )
    return InternVLConfig(
        vision_config={
            **{name: getattr(vision, name) for name in fields},
            "attention_bias": vision.qkv_bias,
            "use_qk_norm": vision.qk_normalization,
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
        },
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
        if name.startswith("vision_model."):
            name = name.removeprefix("vision_model.")
            for ours, theirs in VISION_NAMES.items():
                name = name.replace(ours, theirs)
            name = "model.vision_tower." + name
        for ours, theirs in OTHER_NAMES.items():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        if ".qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("qkv", part + "_proj")] = rows
        else:
            renamed[name] = tensor
    return renamed


def make_native(model):
    """transformers' own model with the weights of `model`; every tensor must find its place."""
    native = InternVLForConditionalGeneration(native_config(model.config, model.config.llm_config.vocab_size - 1))
    native.float()  # it makes its LLM in the dtype that the LLM's config names
    native.load_state_dict(native_state(model.state_dict()), strict=True)
    return native.eval()
