"""Which weights train, for each kind of encoder and of adapters, and what exports hold; stochastic depth; QLoRA."""

import shutil

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from tests.vision_towers import write_tower
from tests.weights.training import chat_inputs, logits, save_pth
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.families import encoder_family, llm_family
from xtuner_plugins.models.blocks import used_blocks
from xtuner_plugins.weights.loader import load_model

from .batches import LORA, backward, build, learn, make_batch, run


def lora(**options):
    return dict(llm_lora=dict(r=4, lora_alpha=8, **options))


PLACED = ["q_proj", "down_proj"]
LAST, PACKED, WHOLE_LLM = dict(visual_encoder_last_layers=1), dict(load_in_4bit=True), dict(freeze_llm=False)
KINDS = {  # settings of the model, layers that get adapters
    "a list": (lora(target_modules=["q_proj", "layers.1.mlp.up_proj"]), 3),
    "an expression": (lora(target_modules=r".*layers\.1\..*(q_proj|down_proj)"), 2),
    "every linear layer, with exceptions": (lora(target_modules="all-linear", exclude_modules=["q_proj"]), 12),
    "saved modules": (lora(modules_to_save=["lm_head"], use_dora=True), 14),
    "a head beside them": (lora(target_modules=PLACED) | dict(train_head=True), 4),
    "a head alone": (dict(train_head=True), 0),
    "beside 4 bits": (lora() | dict(llm_quantization=PACKED), 14),
}
REFUSED = [
    *((dict(visual_encoder_last_layers=n), f"={n} is out of range.*give 1 to 2$") for n in (0, 3)),
    (dict(freeze_visual_encoder=False, **LAST), "set freeze_visual_encoder=True, no visual_encoder_lora"),
    (dict(visual_encoder_lora=LORA, **LAST), "=1 trains whole blocks of an encoder that is frozen otherwise"),
    (dict(visual_encoder_lora=LORA, freeze_visual_encoder=False), "visual_encoder_lora is set, so set freeze_vis"),
    (dict(llm_quantization=PACKED, **WHOLE_LLM), "freeze_llm=True"),
    (dict(llm_quantization=dict(load_in_8bit=True)), "set load_in_4bit=True"),
    (dict(llm_quantization=PACKED | dict(bits=8)), "llm_quantization: .* has no setting bits"),
    (dict(llm_lora=dict(type="IA3Config")), "need type=LoraConfig"),
    (dict(freeze_projector=True), "nothing would train"),
    (dict(gradient_checkpointing=False, offload_activations=True), "needs gradient_checkpointing=True"),
    (dict(compile_blocks=True, drop_path=0.1), "^compile_blocks=True: stochastic depth"),
    (dict(compile_blocks=True, llm_quantization=PACKED), "^compile_blocks=True: packed weights .* aren't compiled"),
    (dict(train_head=True, **WHOLE_LLM), "leave out train_head"),
    (lora(target_modules=["lm_head"]) | dict(train_head=True), "leave out one of them"),
    (lora(target_modules=PLACED, modules_to_save=["lm_head"]) | dict(train_head=True), "leave out one of them"),
    (lora(lora_bias=True), "llm_lora: .*LoRA settings: .*lora_bias can't be merged"),
    (lora(target_modules=["embed_tokens"]), "model.embed_tokens is no linear layer"),
    (lora(target_modules=["q_proj", "k_porj"]), "matches 'k_porj'; .* of down_proj, gate_p"),  # PEFT adapts the other
    (lora(target_modules="q_proj"), "no layer matches 'q_proj'; "),  # not the whole name
]


@pytest.fixture(scope="module", params=["intern_vit", "clip", "siglip"])
def encoder_base(request, toy_base, toy_parts, tmp_path_factory):
    """A base with this kind of encoder; InternViT uses all of its blocks, CLIP and SigLIP the first 2 of 3."""
    if request.param == "intern_vit":
        return str(toy_base)
    folder = tmp_path_factory.mktemp(request.param)
    write_tower(folder / "tower", request.param)
    build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    return str(folder / "base")


def test_last_blocks_get_the_gradient_of_the_whole_encoder(encoder_base):
    """And the graph begins at the first of them. What no feature depends on doesn't train: DDP would wait for it."""
    whole = build(encoder_base, freeze_visual_encoder=False).train()
    batch = make_batch(whole, length=160)
    expected = backward(whole, batch)[1]
    # Keys' biases move every score of a query alike, so softmax gives them no gradient but rounding.
    assert all(grad.abs().max() > 0 for name, grad in expected.items() if not name.endswith("k_proj.bias"))
    assert expected.keys() == set(whole.state_dict())
    encoder = whole.model.vision_model  # of CLIP and SigLIP a layer and the final norm are used nowhere
    unused = sum(not p.requires_grad for p in encoder.parameters())
    assert unused == (16 + 2 if hasattr(encoder, "unused_modules") else 0)
    for recompute in (False, True):
        model, runs = build(encoder_base, **LAST, gradient_checkpointing=recompute).train(), []
        blocks = used_blocks(model.model.vision_model, model.model.select_layer)
        for block in blocks:
            block.register_forward_pre_hook(lambda block, args, to=runs: to.append((block, args[0].requires_grad)))
        gradients, below = backward(model, batch)[1], len(blocks) - 1
        assert runs[: len(blocks)] == [(block, False) for block in blocks]
        assert [block for block, _ in runs[len(blocks) :]] == blocks[below:] * recompute
        assert [block.training for block in blocks] == [False] * below + [True]
        assert gradients.keys() < expected.keys()
        torch.testing.assert_close(gradients, {name: expected[name] for name in gradients}, rtol=1e-5, atol=1e-8)


def test_adapters_are_where_the_row_says(encoder_base):
    model = build(encoder_base, visual_encoder_lora=LORA, freeze_projector=True).train()
    targets = encoder_family(model.model.config.vision_config.to_dict()).lora_targets
    used = used_blocks(model.model.vision_model, model.model.select_layer)
    gradients = backward(model, make_batch(model, length=160))[1]
    assert gradients.keys() == set(model.state_dict()) and len(gradients) == 2 * len(used) * len(targets)
    assert all(any(f".{target}.lora_" in name for target in targets) for name in gradients)
    if hasattr(model.model.vision_model, "unused_modules"):
        with pytest.raises(ValueError, match="drop_path=0.1: .*InternViT has; set it to 0"):
            build(encoder_base, drop_path=0.1)


def test_drop_path_is_that_of_the_settings_and_only_of_what_trains(toy_base, tmp_path):
    """Whatever the base says: official exports name the rate of their training."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"drop_path_rate": 0.0', '"drop_path_rate": 0.9'))
    whole, lora = dict(freeze_visual_encoder=False), dict(visual_encoder_lora=LORA)
    for settings, trains in ((whole, [True] * 2), (lora, [True] * 2), (LAST, [False, True]), ({}, [False] * 2)):
        for rate in (0.0, 0.5):
            model = build(base, drop_path=rate, **settings).train()
            blocks, tiles = model.model.vision_model.encoder.layers, torch.ones(4, 3, model.tile_size, model.tile_size)
            assert torch.equal(model._encode(tiles), model._encode(tiles)) == (not rate or not settings)
            assert [block.drop_path_rate for block in blocks] == [0, rate]
            assert [block.training for block in blocks] == trains, settings


def test_what_does_not_go_together_is_refused(toy_base):
    for settings, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            build(toy_base, **settings)


def test_each_kind_trains_and_is_what_its_exports_hold(toy_base, tmp_path):
    """Of 4 bits the export holds the base's own weights, with the same adapters merged."""
    for name, (settings, num_layers) in KINDS.items():
        settings = dict(settings, freeze_projector=True)
        model, unpacked = build(toy_base, **settings), build(toy_base, **settings | dict(llm_quantization=None))
        assert sum(".lora_A." in each for each, _ in model.named_parameters()) == num_layers, name
        losses = learn(model, make_batch(model), steps=3)
        assert losses[2] < losses[1] < losses[0], name
        model.made_with = {"base": str(toy_base), **settings}
        export(None, save_pth(model, tmp_path / f"{name}.pth"), tmp_path / name)
        unpacked.load_state_dict(model.state_dict(), strict=False)
        exported, inputs = load_model(tmp_path / name, dtype=None), chat_inputs(unpacked.model)
        # float32 products in another order; three steps have moved the logits by more than 1e-3
        gap = logits(exported, inputs) - logits(unpacked.eval().model, inputs)
        assert gap.abs().max() <= 2e-5, name


def test_qlora_trains_beside_four_bit_weights(toy_base, monkeypatch):
    """A layer is packed before the next one is read, and holds the numbers that 4 bits can hold.

    DoRA's magnitudes start as the norms of the packed weights, so that a fresh adapter changes nothing either.
    """
    plain, held, losses = load_model(toy_base, dtype=torch.float32), [], []
    targets = llm_family(plain.config.llm_config.to_dict()).lora_targets

    def watched(*args, filled, **options):
        def fill(model, name):
            filled(model, name)
            layers = [layer for each, layer in model.language_model.named_modules() if each.endswith(targets)]
            held.extend(layer for layer in layers if type(layer) is nn.Linear and not layer.weight.is_meta)

        return load_model(*args, filled=fill, **options)

    monkeypatch.setattr("xtuner_plugins.models.vlm.load_model", watched)
    for double, is_dora in ((False, False), (True, False), (True, True)):
        packing = PACKED | dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
        model = build(toy_base, llm_quantization=packing, llm_lora=LORA | dict(use_dora=is_dora)).train()
        layers = {name: each for name, each in model.model.named_modules() if isinstance(each, bnb.nn.Linear4bit)}
        assert len(layers) == len(targets) * plain.config.llm_config.num_hidden_layers and not held
        for name, layer in layers.items():
            weight = plain.get_submodule(name.removesuffix(".base_layer")).weight.data
            expected = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
            found = layer.weight.data, layer.weight.quant_state
            assert torch.equal(*(bnb.functional.dequantize_4bit(*each) for each in (found, expected))), name
            assert layer.weight.dtype == torch.uint8 and layer.weight.quant_state.nested == double
        packed, batch = {name: layer.weight.clone() for name, layer in layers.items()}, make_batch(model)
        loss, gradients = backward(model, batch)
        assert gradients.keys() == set(model.state_dict())
        magnitudes = [gradient.any() for name, gradient in gradients.items() if "magnitude" in name]
        assert bool(magnitudes) == is_dora and all(magnitudes)
        model.init_weights()  # the runner calls it before it trains; 4-bit weights have no mean
        # A validation in between changes nothing: on some CPUs bitsandbytes would repack the weights then.
        with torch.no_grad():
            run(model.eval(), batch)
        assert all(torch.equal(layer.weight, packed[name]) for name, layer in layers.items())
        assert backward(model.train(), batch)[0] == loss
        losses.append(loss.item())
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)
    monkeypatch.setattr("xtuner_plugins.models.trainable.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="deepspeed_zero2"):
        build(toy_base, llm_quantization=PACKED)
