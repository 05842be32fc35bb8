"""Which weights train, for each kind of encoder and of adapters, and what exports hold; stochastic depth; QLoRA."""

import shutil

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig

from tests.vision_towers import write_tower
from tests.weights.training import chat_inputs, logits, save_pth, with_context, write_config
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.families import encoder_family, llm_family
from xtuner_plugins.models.blocks import used_blocks
from xtuner_plugins.models.trainable import build_quantization_config, linear_quantizer
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.loader import load_model

from .batches import LORA, assert_same, backward, build, learn, make_batch, run

HEAD = "language_model.lm_head.weight"
PLAIN = dict(r=4, lora_alpha=8)
KINDS = {  # settings of LoRA, layers that get adapters, whether a head trains beside them
    "rslora and dora": (dict(use_rslora=True, use_dora=True), 14, False),
    "a list": (dict(target_modules=["q_proj", "layers.1.mlp.up_proj"]), 3, False),
    "an expression": (dict(target_modules=r".*layers\.1\..*(q_proj|down_proj)"), 2, False),
    "every linear layer, with exceptions": (dict(target_modules="all-linear", exclude_modules=["q_proj"]), 12, False),
    "some blocks": (dict(layers_to_transform=[1]), 7, False),
    "saved modules": (dict(modules_to_save=["lm_head"], use_dora=True), 14, False),
    "a head beside them": (dict(target_modules=["q_proj", "down_proj"]), 4, True),
    "a head alone": (None, 0, True),
}
SETTINGS = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
LAST, PACKED, FULL_LLM = dict(visual_encoder_last_layers=1), dict(load_in_4bit=True), dict(freeze_llm=False)
PLACED = LORA | dict(target_modules=["q_proj", "down_proj"])


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
        model, runs, outputs = build(encoder_base, **LAST, gradient_checkpointing=recompute).train(), [], {}
        blocks = used_blocks(model.model.vision_model, model.model.select_layer)
        for index, block in enumerate(blocks):
            # Before the block: recomputing ends within a block, once it has all that the backward pass needs.
            block.register_forward_pre_hook(lambda _m, _i, index=index, runs=runs: runs.append(index))
            block.register_forward_hook(lambda _m, _i, y, index=index, to=outputs: to.setdefault(index, y))
        gradients = backward(model, batch)[1]
        hidden = [output[0] if isinstance(output, tuple) else output for output in outputs.values()]
        below = len(blocks) - 1
        assert [state.requires_grad for state in hidden] == [False] * below + [True]
        assert runs == [*range(len(blocks)), *([below] if recompute else [])]
        assert [block.training for block in blocks] == [False] * below + [True]
        assert gradients.keys() < expected.keys()
        assert_same(gradients, {name: expected[name] for name in gradients}, rtol=1e-5, atol=1e-8)


def test_adapters_are_where_the_row_says(encoder_base):
    model = build(encoder_base, visual_encoder_lora=LORA, freeze_projector=True).train()
    targets = encoder_family(model.model.config.vision_config.to_dict()).lora_targets
    used = used_blocks(model.model.vision_model, model.model.select_layer)
    gradients = backward(model, make_batch(model, length=160))[1]
    assert gradients.keys() == set(model.state_dict()) and len(gradients) == 2 * len(used) * len(targets)
    assert all(any(f".{target}.lora_" in name for target in targets) for name in gradients)
    for settings, message in (
        *((dict(visual_encoder_last_layers=n), f"={n} is out of range.*give 1 to {len(used)}") for n in (0, 4, -1)),
        (dict(drop_path=1.0), "drop_path=1.0 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            build(encoder_base, **settings)
    if hasattr(model.model.vision_model, "unused_modules"):
        with pytest.raises(ValueError, match="InternViT has; set it to 0"):
            build(encoder_base, drop_path=0.1)


def test_drop_path_is_that_of_the_settings_and_only_of_what_trains(toy_base, tmp_path):
    """Whatever the base says: official exports name the rate of their training."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"drop_path_rate": 0.0', '"drop_path_rate": 0.9'))

    def encoded(seed=0, training=True, **settings):
        model = build(base, **settings).train(training)
        torch.manual_seed(seed)
        return model._encode(torch.ones(4, 3, model.tile_size, model.tile_size))

    plain = encoded()
    for settings in (dict(freeze_visual_encoder=False), LAST, dict(visual_encoder_lora=LORA)):
        dropped = encoded(drop_path=0.5, **settings)
        assert not torch.equal(dropped, plain) and torch.equal(encoded(1, **settings), plain)
        assert torch.equal(encoded(drop_path=0.5, **settings), dropped)  # seed, rank and step decide: `seed_step`
        assert not torch.equal(encoded(1, drop_path=0.5, **settings), dropped)
        assert torch.equal(encoded(training=False, drop_path=0.5, **settings), plain)
    assert torch.equal(encoded(drop_path=0.5), plain)


def test_what_can_not_train_is_refused(toy_base):
    for settings, message in (
        (dict(freeze_visual_encoder=False, **LAST), "set freeze_visual_encoder=True, no visual_encoder_lora"),
        (dict(visual_encoder_lora=LORA, **LAST), "=1 trains whole blocks of an encoder that is frozen otherwise"),
        (dict(visual_encoder_quantization=PACKED, **LAST), "no visual_encoder_quantization, or leave it out"),
        (dict(visual_encoder_lora=LORA, freeze_visual_encoder=False), "visual_encoder_lora is set, so set freeze_vis"),
        (dict(visual_encoder_quantization=PACKED, freeze_visual_encoder=False), "packed weights don't train"),
        (dict(llm_lora=LORA, **FULL_LLM), "freeze_llm=True"),
        (dict(llm_quantization=PACKED, **FULL_LLM), "freeze_llm=True"),
        (dict(llm_quantization=dict(load_in_4bit=False)), "set load_in_4bit=True"),
        (dict(llm_quantization=dict(load_in_8bit=True)), "set load_in_4bit=True"),
        (dict(llm_quantization=dict(load_in_4bit=True, load_in_8bit=True)), "load_in_8bit"),
        (dict(llm_quantization=dict(load_in_4bit=True, bits=8)), "llm_quantization: .* has no setting bits"),
        (dict(llm_lora=dict(r=4, alpha=8)), "llm_lora: .*alpha"),
        (dict(llm_lora=dict(r=0)), "lora_rank=0 is out of range; give a whole number, 1 or more"),
        (dict(dtype="float17"), "float17"),
        (dict(freeze_projector=True), "nothing would train"),
        (dict(train_head=True, **FULL_LLM), "leave out train_head"),
        (dict(train_head=True, llm_lora={**PLACED, "target_modules": ["lm_head"]}), "leave out one of them"),
        (dict(train_head=True, llm_lora={**PLACED, "modules_to_save": ["lm_head"]}), "leave out one of them"),
        (dict(llm_lora={**PLAIN, "lora_bias": True}), "llm_lora: .*LoRA settings: .*lora_bias can't be merged"),
        (dict(llm_lora={**PLAIN, "init_lora_weights": "pissa"}), "LoRA settings: .*pissa"),
        (dict(llm_lora={**PLAIN, "target_modules": ["embed_tokens"]}), "model.embed_tokens is no linear layer"),
        # PEFT would adapt q_proj alone.
        (dict(llm_lora={**PLAIN, "target_modules": ["q_proj", "k_porj"]}), "matches 'k_porj'; .* of down_proj, gate_p"),
        (dict(llm_lora={**PLAIN, "target_modules": "q_proj"}), "no layer matches 'q_proj'; "),  # not the whole name
        (
            dict(visual_encoder_lora={**PLAIN, "target_modules": ["q_proj"]}),
            "_lora: .* of fc1, fc2, proj, qkv, ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build(toy_base, **settings)


def test_each_kind_trains_and_is_what_its_exports_hold(toy_base, tmp_path):
    started = load_file(toy_base / "model.safetensors")
    for name, (options, num_layers, train_head) in KINDS.items():
        lora = {} if options is None else dict(llm_lora={**PLAIN, **options})
        settings, folder = dict(freeze_projector=True, train_head=train_head, **lora), tmp_path / name.replace(" ", "_")
        folder.mkdir()
        model = build(toy_base, **settings)
        factors = [p for name, p in model.named_parameters() if ".lora_A." in name]
        assert len(factors) == num_layers and all(len(factor) == 4 for factor in factors), name
        losses = learn(model, make_batch(model), steps=3)
        assert losses[2] < losses[1] < losses[0], name
        config = write_config(folder / "c.py", toy_base, **settings)
        checkpoint = save_pth(model.eval(), folder / "iter_3.pth", config)
        export(config, checkpoint, folder / "out")
        inputs = chat_inputs(model.model)
        expected = logits(model.model, inputs)
        gaps = [
            (logits(with_context(load_model(path, dtype=None), model.model), inputs) - expected).abs().max()
            for path in (folder / "out", toy_base)
        ]
        # float32 products in another order; three steps moved the logits by much more
        assert gaps[0] <= 2e-5 < 1e-3 < gaps[1], (name, gaps)
        out = load_file(folder / "out" / "model.safetensors")
        changed = {each for each in out if not torch.equal(out[each], started[each]) and "layers" not in each}
        head = {HEAD} if train_head or "modules_to_save" in options else set()
        assert out.keys() == started.keys() and changed == head, name


def load(base, **options):
    model = load_model(base, dtype=torch.float32, **options)
    model.img_context_token_id = 508
    return model


def test_loaded_into_4_bits(toy_base, monkeypatch):
    for double in (True, False):
        plain, unpacked = load(toy_base), []
        targets = llm_family(plain.config.llm_config.to_dict()).lora_targets
        settings = build_quantization_config({**SETTINGS, "bnb_4bit_use_double_quant": double}, "llm")
        quantize = linear_quantizer("language_model", targets, settings, torch.float32)

        def watched(model, name, quantize=quantize, unpacked=unpacked, targets=targets):
            quantize(model, name)
            layers = [m for n, m in model.language_model.named_modules() if n.endswith(targets)]
            unpacked.append(sum(type(m) is nn.Linear and not m.weight.is_meta for m in layers))

        packed = load(toy_base, filled=watched)
        names = [n for n, m in packed.named_modules() if isinstance(m, bnb.nn.Linear4bit)]
        assert max(unpacked) == 0 and len(names) == len(targets) * plain.config.llm_config.num_hidden_layers
        assert all(n.startswith("language_model.") for n in names)
        inputs = chat_inputs(plain)
        exact, found = logits(plain, inputs), logits(packed, inputs)
        for name in names:  # the plain model, with the numbers that 4 bits can hold
            weight = plain.get_submodule(name).weight
            values, state = bnb.functional.quantize_4bit(weight.data, quant_type="nf4", compress_statistics=double)
            weight.data = bnb.functional.dequantize_4bit(values, state)
        # float32 products of the same numbers, summed in another order
        torch.testing.assert_close(found, logits(plain, inputs), rtol=0, atol=1e-5)
        assert (found - exact).abs().max() > 1e-3
    monkeypatch.setattr("xtuner_plugins.models.trainable.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="deepspeed_zero2"):
        linear_quantizer("language_model", targets, settings, torch.float32)


def test_qlora_trains_beside_four_bit_weights(toy_base):
    """DoRA's magnitudes start as the norms of the packed weights, so that a fresh adapter changes nothing either."""
    plain, losses = build(toy_base), []
    for is_dora in (False, True):
        model = build(toy_base, llm_quantization=SETTINGS, llm_lora=LORA | dict(use_dora=is_dora)).train()
        layer = model.model.language_model.model.layers[0].self_attn.q_proj.base_layer
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 64 * 64 // 2
        assert model.model.language_model.lm_head.weight.dtype == torch.float32
        loss, gradients = backward(model, make_batch(model))
        assert gradients.keys() == set(model.state_dict())
        magnitudes = [gradient for name, gradient in gradients.items() if "magnitude" in name]
        assert bool(magnitudes) == is_dora and all(gradient.abs().max() > 0 for gradient in magnitudes)
        model.init_weights()  # the runner calls it before it trains; 4-bit weights have no mean
        # A validation in between changes nothing: on some CPUs bitsandbytes would repack the weights then.
        packed = layer.weight.clone()
        with torch.no_grad():
            run(model.eval(), make_batch(model))
        assert torch.equal(layer.weight, packed) and backward(model.train(), make_batch(model))[0] == loss
        losses.append(loss.item())
    # 4 bits cost accuracy, not sense: a random LLM's loss moves by a few percent.
    exact = run(plain, make_batch(plain))["loss"].item()
    assert 0 < abs(losses[0] - exact) < 0.05 * exact and losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_merged_export_keeps_what_was_learned(tmp_path):
    """Its gap to the model in 4 bits is that of the base's own 4 bits (docs/measurements.md), not more by the merge."""
    sizes = dict(hidden_size=256, intermediate_size=512)  # several scales per row, as in real layers
    base = tmp_path / "base"
    build_base(*write_random_parts(tmp_path / "parts", llm_overrides=sizes), base, dtype="float32")
    settings = dict(
        llm_lora=LORA | dict(r=16, lora_alpha=32), llm_quantization=dict(type=BitsAndBytesConfig, **SETTINGS)
    )
    model = build(base, gradient_checkpointing=False, **settings)
    losses = learn(model, make_batch(model), 12, torch.optim.AdamW, lr=1e-3)
    config = write_config(tmp_path / "config.py", base, **settings)
    config.write_text("from transformers import BitsAndBytesConfig\n" + config.read_text())
    export(config, save_pth(model, tmp_path / "iter_12.pth", config), tmp_path / "export")
    merged = build(tmp_path / "export", gradient_checkpointing=False).eval()
    # From 7.6 to 0.23 when this was written
    assert losses[-1] < 0.1 * losses[0] and run(merged, make_batch(model))["loss"] < 0.1 * losses[0]

    def gap(packed, plain):
        """Root mean square difference of logits, as a share of the root mean square logit."""
        inputs = chat_inputs(with_context(packed, model))
        exact, other = (logits(with_context(m, model), inputs) for m in (packed, plain))
        return ((exact - other).square().mean() / exact.square().mean()).sqrt().item()

    targets = llm_family(model.model.config.llm_config.to_dict()).lora_targets
    config = build_quantization_config(SETTINGS, "llm")
    quantize = linear_quantizer("language_model", targets, config, torch.float32)
    of_base, of_export = gap(load(base, filled=quantize).train(), load(base)), gap(model.model, merged.model)
    assert of_export < 0.35 and of_export == pytest.approx(of_base, rel=0.15)
