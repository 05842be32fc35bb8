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


def test_every_llm_of_the_table_equals_itself_in_transformers_own_model():
    for llm in LLMS:
        model = make_model(make_config(llm=LLMS[llm]))
        native = make_native(model)
        pixels, ids = make_batch(model)
        with torch.no_grad():
            ours, theirs = model(pixels, ids).logits, native(ids, pixels).logits
        assert model.language_model.config.model_type == llm
        assert (ours - theirs).abs().max() < 2e-6, llm
        layer = type(model.get_submodule("language_model.model.layers.0")).__name__  # not split over devices
        assert layer in model._no_split_modules and "InternVisionEncoderLayer" in model._no_split_modules
        pixels, ids = make_batch(model, tiles=(1,))
        assert model.generate(pixels, ids, max_new_tokens=3, eos_token_id=None, do_sample=False).shape == (1, 3)


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


def test_select_layer():
    pixels = torch.randn(2, 3, TILE, TILE)
    for select_layer in (-2, 1):
        model = make_model(make_config(select_layer=select_layer))
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


def test_flagged_tiles_count_for_nothing():
    model = make_model()
    pixels, ids = make_batch(model, tiles=(1, 1))
    padded = torch.cat([pixels[:1], torch.full_like(pixels[:1], 9.0), pixels[1:]])
    for flags in ([1, 0, 1], [[1], [0], [1]]):
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


def test_what_does_not_add_up():
    model = make_model()
    pixels, ids = make_batch(model)
    embeds, features = model.get_input_embeddings()(ids), model.extract_feature(pixels)
    assert torch.equal(model.place_features(embeds, ids, features, 48), model.place_features(embeds, ids, features))
    twice = torch.cat([pixels, pixels])
    differ = "48 image tokens in input_ids, but {} image features"
    for call, message in (
        (lambda: model(pixels, ids, image_flags=torch.tensor([1, 1])), "2 image flags for 3 tiles"),
        (lambda: model(twice[:2], ids), differ.format(32)),
        (lambda: model.generate(twice[:4], ids, max_new_tokens=1), differ.format(64)),
        (lambda: model(None, ids), differ.format(0)),
        (
            lambda: model.place_features(embeds, ids, features, 32),
            "32 image tokens in input_ids, but 48 image features",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
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


def test_num_image_token_and_unfit_configs():
    for side, ratio, expected in ((112, 0.5, 16), (448, 0.5, 256), (112, 0.25, 4), (None, 0.5, 16)):
        model = InternVLChatModel(make_config(force_image_size=side, downsample_ratio=ratio))
        assert model.num_image_token == expected
    for fields, message in (
        ({"template": "internvl9"}, "unknown conversation template 'internvl9'; known are .*internvl2_5"),
        ({"ps_version": "v3"}, "ps_version = 'v3'; legal are 'v1', 'v2'"),
        ({"use_llm_lora": 8}, "unmerged adapters"),
        ({"force_image_size": 126}, "126 pixels has 9 x 9 patches, which can't be merged 2 x 2"),
    ):
        with pytest.raises(ValueError, match=message):
            InternVLChatModel(make_config(**fields))


def test_training_path_never_reads_a_tensor_back():
    """Tensors without values: whoever asks for one, and makes an accelerator wait, fails here."""
    model = make_model(make_config(RMS_VISION, attn_implementation="sdpa"))
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
