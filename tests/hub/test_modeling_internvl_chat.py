"""The chat model against transformers' own, and the contracts that callers rely on."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import InternVLConfig, InternVLForConditionalGeneration

from xtuner_plugins.hub.configuration_internvl_chat import InternVLChatConfig
from xtuner_plugins.hub.constants import token_grid
from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel
from xtuner_plugins.weights import hf
from xtuner_plugins.weights.lazy import MemoryTensor

from .cases import LLMS, RMS_VISION, VISION, make_batch, make_config, make_model

GREEDY = {"do_sample": False, "eos_token_id": None}
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type")
FIELDS += ("layer_norm_eps", "hidden_act", "num_channels")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)


def make_native(model):
    """transformers' own model with the weights of `model`, the independent reference."""
    config, vision = model.config, model.config.vision_config
    sizes = dict(image_size=[vision.image_size] * 2, patch_size=[vision.patch_size] * 2)
    kinds = dict(attention_bias=vision.qkv_bias, use_qk_norm=vision.qk_normalization)
    native_config = InternVLConfig(
        vision_config={**{name: getattr(vision, name) for name in FIELDS}, **sizes, **kinds},
        text_config=config.llm_config.to_dict(),
        image_token_id=config.llm_config.vocab_size - 1,
        downsample_ratio=config.downsample_ratio,
        vision_feature_layer=config.select_layer,
        tie_word_embeddings=False,
        attn_implementation=config._attn_implementation,
    )
    native = InternVLForConditionalGeneration(native_config).float()  # its LLM has the dtype that its config names
    stored = hf.KEYS.to_theirs({name: MemoryTensor(tensor) for name, tensor in model.state_dict().items()})
    state = {f"model.{name}": tensor.read() for name, tensor in stored.items()}  # in memory the names are others
    moved = {"model.language_model.model.": "model.language_model.", "model.language_model.lm_head.": "lm_head."}
    for old, new in moved.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    native.load_state_dict(state)
    return native.eval()


@torch.no_grad()
def test_equals_transformers_own_model():
    """Both encoders x both attentions, and every LLM; layers of none are split over devices."""
    sdpa = dict.fromkeys(("qwen3", "llama", "phi3"), [(VISION, "sdpa")])
    for llm, kinds in {"qwen2": itertools.product((VISION, RMS_VISION), ("eager", "sdpa")), **sdpa}.items():
        for vision, attention in kinds:
            model = make_model(make_config(vision, LLMS[llm], attn_implementation=attention))
            native = make_native(model)
            assert model.language_model.config._attn_implementation == attention
            assert model.language_model.config.model_type == llm
            pixels, ids = make_batch(model)
            mask = torch.ones_like(ids)
            mask[1, 50:] = 0
            features, theirs = model.extract_feature(pixels), native.get_image_features(pixels)
            theirs = getattr(theirs, "pooler_output", theirs)  # of transformers 5
            assert features.shape == (3, 16, 32) and theirs.abs().max() > 1
            assert (features - theirs).abs().max() < 1e-6 * theirs.abs().max()
            close(model(pixels, ids, mask).logits[mask == 1], native(ids, pixels, mask).logits[mask == 1])
            layer = type(model.get_submodule("language_model.model.layers.0")).__name__
            assert {layer, "InternVisionEncoderLayer"} <= set(model._no_split_modules)


def shuffle_by_the_book(x, scale, version):
    """The recipe of the format's description, literally."""
    n, w, h, c = x.shape
    x = x.view(n, w, int(h * scale), int(c / scale)).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, int(h * scale), int(w * scale), int(c / (scale * scale)))
    return x.permute(0, 2, 1, 3).contiguous() if version == "v2" else x


def test_pixel_shuffle():
    for version in ("v1", "v2"):
        model = make_model(make_config(ps_version=version))
        for shape, scale in (((2, 8, 8, 3), 0.5), ((1, 4, 6, 2), 0.5), ((1, 8, 4, 5), 0.25)):
            x = torch.arange(torch.tensor(shape).prod().item()).float().reshape(shape)
            assert torch.equal(model.pixel_shuffle(x, scale), shuffle_by_the_book(x, scale, version))
    with pytest.raises(ValueError, match="7 x 8 patches can't be merged 2 x 2"):
        model.pixel_shuffle(torch.zeros(1, 7, 8, 3))


@torch.no_grad()
def test_loss_is_the_mean_over_asked_tokens():
    model = make_model()
    pixels, ids = make_batch(model)
    labels = torch.full_like(ids, -100)
    assert model(pixels, ids, labels=labels).loss.item() == 0
    labels[0, 40:] = ids[0, 40:]
    loss, logits, *_ = model(pixels, ids, labels=labels, return_dict=False)
    close(loss, F.cross_entropy(logits[0, 39:-1], ids[0, 40:]))
    assert torch.equal(model(None, ids % 300).logits, model.language_model(ids % 300).logits)


def test_flagged_tiles_count_for_nothing():
    """A batch of dummy tiles alone gives zero gradients rather than none, as distributed training needs."""
    model = make_model()
    pixels, ids = make_batch(model, tiles=(1, 1))
    padded = torch.cat([pixels[:1], torch.full_like(pixels[:1], 9.0), pixels[1:]])
    for flags in ([1, 0, 1], [[1], [0], [1]]):
        with torch.no_grad():
            close(model(padded, ids, image_flags=torch.tensor(flags)).logits, model(pixels, ids).logits)
    _, ids = make_batch(model, tiles=(0, 0))
    model(pixels[:1], ids, image_flags=torch.tensor([0]), labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            assert parameter.grad is not None and parameter.grad.abs().max() == 0, name


def test_what_does_not_add_up():
    model = make_model()
    pixels, ids = make_batch(model)
    for call, message in (
        (lambda: model(pixels, ids, image_flags=torch.tensor([1, 1])), "2 image flags for 3 tiles"),
        (lambda: model(pixels[:2], ids), "48 image tokens in input_ids, but 32 image features"),
        (lambda: model(None, ids), "48 image tokens in input_ids, but 0 image features"),
        (lambda: InternVLChatModel(model.config)(pixels, ids), "img_context_token_id is not set"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for fields, message in (
        ({"template": "internvl9"}, "unknown conversation template 'internvl9'; known are .*internvl2_5"),
        ({"ps_version": "v3"}, "ps_version = 'v3'; legal are 'v1', 'v2'"),
        ({"use_llm_lora": 8}, "unmerged adapters"),
        ({"force_image_size": 126}, "126 pixels has 9 x 9 patches, which can't be merged 2 x 2"),
    ):
        with pytest.raises(ValueError, match=message):
            InternVLChatModel(make_config(**fields))
    for side, ratio, expected in ((112, 0.5, 16), (448, 0.5, 256), (112, 0.25, 4), (None, 0.5, 16)):
        assert InternVLChatModel(make_config(force_image_size=side, downsample_ratio=ratio)).num_image_token == expected


@torch.no_grad()
def test_generate_is_greedy_decoding_and_returns_new_ids_only():
    """Of pixels and of features; padding on the left changes nothing."""
    model = make_model()
    pixels, ids = make_batch(model, tiles=(2,))
    slow, own = ids, torch.ones_like(ids)
    for _ in range(6):
        slow = torch.cat([slow, model(pixels, slow).logits[:, -1:].argmax(-1)], dim=1)
    padded, mask = torch.cat([ids[:, :3], ids], dim=1), torch.cat([0 * own[:, :3], own], dim=1)
    features = dict(pixel_values=None, visual_features=model.extract_feature(pixels))
    for options in ({}, features, {"input_ids": padded, "attention_mask": mask}):
        given = {"pixel_values": pixels, "input_ids": ids, "attention_mask": own, **options}
        assert model.generate(**given, max_new_tokens=6, **GREEDY).equal(slow[:, ids.shape[1] :]), options.keys()


def test_embeddings_and_head_are_the_llms():
    model = make_model()
    llm, config = model.language_model, model.config.llm_config
    assert model.resize_token_embeddings(330) is model.get_input_embeddings() is llm.model.embed_tokens
    assert model.lm_head is llm.lm_head and llm.lm_head.weight is not llm.model.embed_tokens.weight
    assert llm.lm_head.weight.shape == llm.model.embed_tokens.weight.shape == (330, 32) == (config.vocab_size, 32)


@torch.no_grad()
def test_bilinear_projector_halves_the_grid_and_keeps_the_width():
    """9 x 9 patches become 4 x 4 tokens, as so400m's 27 x 27 become 13 x 13."""
    fields = dict(projector_type="bilinear_mlp", force_image_size=126)
    model = make_model(InternVLChatConfig(**make_config({**VISION, "image_size": 126}, **fields).to_dict()))
    assert model.num_image_token == 16 and [type(layer) for layer in model.mlp1][::2] == [torch.nn.Linear] * 2
    pixels = torch.randn(2, 3, 126, 126)
    grid = model.encode_tiles(pixels).reshape(2, 9, 9, 48).permute(0, 3, 1, 2)
    # Sample i of 4 stands at (i + 0.5) * 9 / 4 - 0.5 of the nine patches, between its two neighbors.
    at = (torch.arange(4) + 0.5) * 9 / 4 - 0.5
    low, share = at.floor().long(), at - at.floor()
    rows = grid[:, :, low] * (1 - share)[:, None] + grid[:, :, low + 1] * share[:, None]
    cells = rows[..., low] * (1 - share) + rows[..., low + 1] * share
    expected = model.mlp1(cells.permute(0, 2, 3, 1).flatten(1, 2))
    assert (model.extract_feature(pixels) - expected).abs().max() < 1e-5
    assert token_grid(384, 14, 0.5, "bilinear_mlp") ** 2 == 169
    with pytest.raises(ValueError, match="27 x 27 patches, which can't be merged 2 x 2"):
        token_grid(384, 14, 0.5)
