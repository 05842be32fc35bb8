"""The chat model against transformers' own, and the contracts that callers rely on."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from xtuner_plugins.hub import InternVLChatConfig, InternVLChatModel
from xtuner_plugins.hub.constants import token_grid

from .cases import LLMS, RMS_VISION, TILE, VISION, make_batch, make_config, make_model
from .native import make_native

TOWERS = {"layer_norm": VISION, "rms_norm": RMS_VISION}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tower", TOWERS)
def test_equals_transformers_own_model(tower, attention):
    model = make_model(make_config(TOWERS[tower], attn_implementation=attention))
    native = make_native(model)
    assert model.language_model.config._attn_implementation == attention
    pixels, ids = make_batch(model)
    mask = torch.ones_like(ids)
    mask[1, 50:] = 0
    with torch.no_grad():
        ours, theirs = model(pixels, ids, mask).logits, native(ids, pixels, mask).logits
        features, native_features = model.extract_feature(pixels), native.get_image_features(pixels)
    native_features = getattr(native_features, "pooler_output", native_features)  # of transformers 5
    assert features.shape == (3, 16, 32) and native_features.abs().max() > 1
    assert (features - native_features).abs().max() < 1e-6 * native_features.abs().max()
    real = mask.bool()
    assert (ours[real] - theirs[real]).abs().max() < 2e-6


@pytest.mark.parametrize("llm", LLMS)
def test_every_llm_of_the_table_equals_itself_in_transformers_own_model(llm):
    model = make_model(make_config(llm=LLMS[llm]))
    native = make_native(model)
    pixels, ids = make_batch(model)
    with torch.no_grad():
        ours, theirs = model(pixels, ids).logits, native(ids, pixels).logits
    assert model.language_model.config.model_type == llm
    assert (ours - theirs).abs().max() < 2e-6


@pytest.mark.parametrize("llm", LLMS)
def test_no_decoder_layer_is_split_over_devices(llm):
    model = make_model(make_config(llm=LLMS[llm]))
    layer = type(model.get_submodule("language_model.model.layers.0")).__name__
    assert layer in model._no_split_modules and "InternVisionEncoderLayer" in model._no_split_modules


def shuffle_by_the_book(x, scale, version):
    """The recipe of the format's description, literally."""
    n, w, h, c = x.shape
    x = x.view(n, w, int(h * scale), int(c / scale)).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, int(h * scale), int(w * scale), int(c / (scale * scale)))
    return x.permute(0, 2, 1, 3).contiguous() if version == "v2" else x


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("shape, scale", [((2, 8, 8, 3), 0.5), ((1, 4, 6, 2), 0.5), ((1, 8, 4, 5), 0.25)])
def test_pixel_shuffle(version, shape, scale):
    model = make_model(make_config(ps_version=version))
    x = torch.arange(torch.tensor(shape).prod().item()).float().reshape(shape)
    assert torch.equal(model.pixel_shuffle(x, scale), shuffle_by_the_book(x, scale, version))


def test_pixel_shuffle_of_an_odd_grid():
    with pytest.raises(ValueError, match="7 x 8 patches can't be merged 2 x 2"):
        make_model().pixel_shuffle(torch.zeros(1, 7, 8, 3))


@pytest.mark.parametrize("select_layer", [-2, 1])
def test_select_layer(select_layer):
    model = make_model(make_config(select_layer=select_layer))
    pixels = torch.randn(2, 3, TILE, TILE)
    with torch.no_grad():
        states = model.vision_model(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(model.extract_feature(pixels), model.project(states[select_layer][:, 1:]))


def test_loss_is_the_mean_over_asked_tokens():
    model = make_model()
    pixels, ids = make_batch(model)
    labels = torch.full_like(ids, -100)
    labels[0, 40:] = ids[0, 40:]
    with torch.no_grad():
        out = model(pixels, ids, labels=labels)
        as_tuple = model(pixels, ids, labels=labels, return_dict=False)
    expected = F.cross_entropy(out.logits[0, 39:-1], ids[0, 40:])
    torch.testing.assert_close(out.loss, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(as_tuple[0], out.loss) and torch.equal(as_tuple[1], out.logits)
    assert model(pixels, ids, labels=torch.full_like(ids, -100)).loss.item() == 0


@pytest.mark.parametrize("flags", [[1, 0, 1], [[1], [0], [1]]])
def test_flagged_tiles_count_for_nothing(flags):
    model = make_model()
    pixels, ids = make_batch(model, tiles=(1, 1))
    padded = torch.cat([pixels[:1], torch.full_like(pixels[:1], 9.0), pixels[1:]])
    with torch.no_grad():
        expected = model(pixels, ids).logits
        found = model(padded, ids, image_flags=torch.tensor(flags)).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_batch_of_dummy_tiles_only_gives_every_parameter_a_gradient():
    """What distributed training asks for: zero gradients rather than none."""
    model = make_model()
    pixels, ids = make_batch(model, tiles=(0, 0))
    pixels = torch.randn(1, 3, TILE, TILE)
    model(pixels, ids, image_flags=torch.tensor([0]), labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            assert parameter.grad is not None and parameter.grad.abs().max() == 0, name


def test_flags_and_tiles_differ_in_number():
    model = make_model()
    pixels, ids = make_batch(model)
    with pytest.raises(ValueError, match="2 image flags for 3 tiles"):
        model(pixels, ids, image_flags=torch.tensor([1, 1]))


@pytest.mark.parametrize("given, features", [(2, 32), (4, 64)])
def test_tokens_and_features_differ_in_number(given, features):
    model = make_model()
    pixels, ids = make_batch(model)
    pixels = torch.cat([pixels, pixels])[:given]
    for call in (lambda: model(pixels, ids), lambda: model.generate(pixels, ids, max_new_tokens=1)):
        with pytest.raises(ValueError, match=f"48 image tokens in input_ids, but {features} image features"):
            call()


def test_image_tokens_without_images():
    model = make_model()
    _, ids = make_batch(model)
    with pytest.raises(ValueError, match="48 image tokens in input_ids, but 0 image features"):
        model(None, ids)


def test_a_count_from_the_caller_is_checked_too():
    model = make_model()
    pixels, ids = make_batch(model)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        features = model.extract_feature(pixels)
        assert torch.equal(model.place_features(embeds, ids, features, 48), model.place_features(embeds, ids, features))
    with pytest.raises(ValueError, match="32 image tokens in input_ids, but 48 image features"):
        model.place_features(embeds, ids, features, 32)


def test_images_before_the_token_id_is_known():
    model = make_model()
    pixels, ids = make_batch(model)
    model.img_context_token_id = None
    with pytest.raises(ValueError, match="img_context_token_id is not set"):
        model(pixels, ids)


def test_features_are_placed_in_order_and_pass_gradients_on():
    model = make_model()
    _, ids = make_batch(model)
    embeds = torch.zeros(*ids.shape, 32, requires_grad=True)
    features = torch.arange(48.0)[:, None].expand(48, 32).reshape(3, 16, 32).clone().requires_grad_()
    placed = model.place_features(embeds, ids, features)
    mask = ids == model.img_context_token_id
    assert torch.equal(placed[mask][:, 0], torch.arange(48.0))
    placed.sum().backward()
    assert features.grad.eq(1).all()
    assert torch.equal(embeds.grad[..., 0].bool(), ~mask)


def test_text_only_forward_equals_the_llm():
    model = make_model()
    ids = torch.randint(3, 300, (2, 20))
    with torch.no_grad():
        assert torch.equal(model(None, ids).logits, model.language_model(ids).logits)


def test_generate_is_greedy_decoding_and_returns_new_ids_only():
    model = make_model()
    pixels, ids = make_batch(model, tiles=(2,))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.generate(pixels, ids, torch.ones_like(ids), **options)
    with torch.no_grad():
        features = model.extract_feature(pixels)
        from_features = model.generate(None, ids, torch.ones_like(ids), visual_features=features, **options)
        slow = ids
        for _ in range(6):
            slow = torch.cat([slow, model(pixels, slow).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, slow[:, ids.shape[1] :]) and torch.equal(from_features, found)


@pytest.mark.parametrize("llm", [name for name in LLMS if name != "qwen2"])
def test_every_llm_generates(llm):
    model = make_model(make_config(llm=LLMS[llm]))
    pixels, ids = make_batch(model, tiles=(1,))
    assert model.generate(pixels, ids, max_new_tokens=3, eos_token_id=None, do_sample=False).shape == (1, 3)


def test_padding_on_the_left_changes_nothing():
    model = make_model()
    pixels, ids = make_batch(model, tiles=(1,))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    plain = model.generate(pixels, ids, torch.ones_like(ids), **options)
    padded = torch.cat([torch.full((1, 5), 1), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], dim=1)
    assert torch.equal(model.generate(pixels, padded, mask, **options), plain)


def test_embeddings_and_head_are_the_llms():
    model = make_model()
    llm = model.language_model
    assert model.get_input_embeddings() is llm.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head is llm.lm_head
    assert llm.lm_head.weight is not llm.model.embed_tokens.weight
    model.resize_token_embeddings(330)
    assert model.lm_head.weight.shape == model.get_input_embeddings().weight.shape == (330, 32)
    assert model.config.llm_config.vocab_size == 330


def test_parts_given_ready_made_are_used():
    donor = make_model()
    model = InternVLChatModel(donor.config, donor.vision_model, donor.language_model, use_flash_attn=False)
    assert model.vision_model is donor.vision_model and model.language_model is donor.language_model


def test_parameter_names_are_the_published_ones():
    names = {name for name, _ in make_model(make_config(RMS_VISION)).named_parameters()}
    expected = {
        *("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding"),
        *(f"vision_model.embeddings.patch_embedding.{kind}" for kind in ("weight", "bias")),
        *(f"mlp1.{index}.{kind}" for index in (0, 1, 3) for kind in ("weight", "bias")),
    }
    for layer in range(3):
        prefix = f"vision_model.encoder.layers.{layer}."
        expected |= {prefix + name for name in ("ls1", "ls2", "norm1.weight", "norm2.weight", "attn.qkv.weight")}
        expected |= {prefix + f"attn.{norm}_norm.weight" for norm in "qk"}
        expected |= {
            prefix + f"{part}.{kind}" for part in ("attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
        }
    assert {name for name in names if not name.startswith("language_model.")} == expected
    assert "language_model.model.layers.1.self_attn.q_proj.bias" in names and "language_model.lm_head.weight" in names


@pytest.mark.parametrize("side, ratio, expected", [(112, 0.5, 16), (448, 0.5, 256), (112, 0.25, 4), (None, 0.5, 16)])
def test_num_image_token(side, ratio, expected):
    model = InternVLChatModel(make_config(force_image_size=side, downsample_ratio=ratio))
    assert model.num_image_token == expected


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"template": "internvl9"}, "unknown conversation template 'internvl9'; known are .*internvl2_5"),
        ({"ps_version": "v3"}, "ps_version = 'v3'; legal are 'v1', 'v2'"),
        ({"use_llm_lora": 8}, "unmerged adapters"),
        ({"force_image_size": 126}, "126 pixels has 9 x 9 patches, which can't be merged 2 x 2"),
    ],
)
def test_unfit_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        InternVLChatModel(make_config(**fields))


def test_save_and_reload(tmp_path):
    model = make_model(make_config(RMS_VISION, LLMS["llama"]))
    model.save_pretrained(tmp_path)
    pixels, ids = make_batch(model)
    for options in ({}, {"use_flash_attn": True}, {"use_flash_attn": False, "low_cpu_mem_usage": True}):
        again, info = InternVLChatModel.from_pretrained(
            tmp_path, torch_dtype=torch.float32, output_loading_info=True, **options
        )
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        again.img_context_token_id = model.img_context_token_id
        with torch.no_grad():
            assert torch.equal(again.eval()(pixels, ids).logits, model(pixels, ids).logits)


def test_reload_in_bfloat16_is_bfloat16_everywhere(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = InternVLChatModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    pixels, ids = make_batch(model)
    assert model(pixels, ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_path_never_reads_a_tensor_back(attention):
    """Tensors without values: whoever asks for one, and makes an accelerator wait, fails here."""
    model = make_model(make_config(RMS_VISION, attn_implementation=attention))
    pixels, ids = make_batch(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        pixels, ids = fake.from_tensor(pixels), fake.from_tensor(ids)
        with pytest.raises(DataDependentOutputException):
            ids.sum().item()
        features = model.extract_feature(pixels)
        embeds = model.get_input_embeddings()(ids)
        placed = model.place_features(embeds, ids, features, num_image_tokens=48)
    assert features.shape == (3, 16, 32) and placed.shape == (2, 64, 32)


def test_bilinear_projector_halves_the_grid_and_keeps_the_width():
    """9 x 9 patches become 4 x 4 tokens, as so400m's 27 x 27 become 13 x 13."""
    config = make_config({**VISION, "image_size": 126}, projector_type="bilinear_mlp", force_image_size=126)
    model = make_model(config)
    assert model.num_image_token == 16 and [type(layer).__name__ for layer in model.mlp1] == [
        "Linear",
        "GELU",
        "Linear",
    ]
    pixels = torch.randn(2, 3, 126, 126)
    with torch.no_grad():
        patches = model.encode_tiles(pixels)
        grid = patches.reshape(2, 9, 9, 48).permute(0, 3, 1, 2)
        # Sample i of 4 stands at (i + 0.5) * 9 / 4 - 0.5 of the nine patches, between its two neighbors.
        at = (torch.arange(4) + 0.5) * 9 / 4 - 0.5
        low, share = at.floor().long(), at - at.floor()
        rows = grid[:, :, low] * (1 - share)[:, None] + grid[:, :, low + 1] * share[:, None]
        cells = rows[..., low] * (1 - share) + rows[..., low + 1] * share
        expected = model.mlp1(cells.permute(0, 2, 3, 1).flatten(1, 2))
        assert (model.extract_feature(pixels) - expected).abs().max() < 1e-5
    assert make_model(InternVLChatConfig(**config.to_dict())).num_image_token == 16


def test_tokens_of_the_published_bilinear_model():
    assert token_grid(384, 14, 0.5, "bilinear_mlp") ** 2 == 169
    with pytest.raises(ValueError, match="27 x 27 patches, which can't be merged 2 x 2"):
        token_grid(384, 14, 0.5)
