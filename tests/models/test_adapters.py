"""PEFT's kinds of adapters, and heads: each trains, and its export is what was trained."""

import pytest
import torch
from safetensors.torch import load_file

from tests.weights.training import chat_inputs, logits, save_pth, with_context, write_config
from xtuner_plugins.export.export import export
from xtuner_plugins.weights.loader import load_model

from .batches import build, learn, make_batch

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


def test_what_cannot_be_merged_or_matches_no_layer_does_not_train(toy_base):
    """PEFT would adapt q_proj alone of q_proj and k_porj; and an expression is to match the whole name of a layer."""
    for part, options, message in (
        ("llm", {"lora_bias": True}, "LoRA settings: .*lora_bias can't be merged"),
        ("llm", {"init_lora_weights": "pissa"}, "LoRA settings: .*pissa"),
        ("llm", {"target_modules": ["embed_tokens"]}, "target_modules: model.embed_tokens is no linear layer"),
        ("llm", {"target_modules": ["q_proj", "k_porj"]}, "no layer matches 'k_porj'; .* of down_proj, gate_proj, k_p"),
        ("llm", {"target_modules": "q_proj"}, "no layer matches 'q_proj'; "),
        ("visual_encoder", {"target_modules": ["q_proj"]}, "matches 'q_proj'; .* of fc1, fc2, proj, qkv, or No"),
    ):
        with pytest.raises(ValueError, match=f"{part}_lora: .*{message}"):
            build(toy_base, **{f"{part}_lora": {**PLAIN, **options}})
