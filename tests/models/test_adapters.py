"""PEFT's kinds of adapters, and heads: each trains, is exported merged and as an adapter, and opens again as it was."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.weights.training import chat_inputs, load_trained, logits, save_pth, with_context, write_config
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import export
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import CheckpointError

from .batches import backward, build, learn, make_batch, run

HEAD = "language_model.lm_head.weight"
PLAIN = dict(r=4, lora_alpha=8)


def kind(num_layers, ranks=(4,), head=False, **options):
    """(settings of the model, layers that get adapters, rank of each); without layers there are no adapters."""
    settings = dict(llm_lora={**PLAIN, **options}) if num_layers else {}
    return dict(freeze_projector=True, train_head=head, **settings), num_layers, set(ranks)


KINDS = {
    "rslora and dora": kind(14, use_rslora=True, use_dora=True),
    "a list": kind(3, target_modules=["q_proj", "layers.1.mlp.up_proj"]),
    "an expression": kind(2, target_modules=r".*layers\.1\..*(q_proj|down_proj)"),
    "every linear layer": kind(14, target_modules="all-linear"),
    "with exceptions": kind(10, exclude_modules=["q_proj", "k_proj"], use_rslora=True),
    "some blocks": kind(7, layers_to_transform=[1]),
    "saved modules": kind(14, modules_to_save=["lm_head"], use_dora=True),
    "a head beside them": kind(4, head=True, target_modules=["q_proj", "down_proj"]),
    "a head alone": kind(0, (), head=True),
}


@pytest.mark.parametrize("settings, num_layers, ranks", KINDS.values(), ids=KINDS)
def test_each_kind_trains_and_is_what_its_exports_hold(settings, num_layers, ranks, toy_base, tmp_path):
    model = build(toy_base, **settings)
    factors = [p for name, p in model.named_parameters() if ".lora_A." in name]
    assert len(factors) == num_layers and {len(factor) for factor in factors} == ranks
    losses = learn(model, make_batch(model), steps=3)
    assert losses[2] < losses[1] < losses[0]
    config = write_config(tmp_path / "c.py", toy_base, **settings)
    checkpoint = save_pth(model.eval(), tmp_path / "iter_3.pth", config)
    export(config, checkpoint, tmp_path / "out")
    inputs = chat_inputs(model.model)
    expected = logits(model.model, inputs)

    def distance(loaded):
        return (logits(with_context(loaded, model.model), inputs) - expected).abs().max()

    models = [load_model(tmp_path / "out", dtype=None)]
    models += [load_trained(config, checkpoint, dtype=None, merge_lora=merge) for merge in (True, False)]
    # float32 products in another order; three steps moved the logits by much more
    base = load_model(toy_base, dtype=None)
    assert max(map(distance, models)) <= 2e-5 < 1e-3 < distance(base)

    out, started = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", toy_base))
    has_head = settings["train_head"] or "modules_to_save" in settings["llm_lora"]
    changed = {name for name in out if not torch.equal(out[name], started[name])}
    assert out.keys() == started.keys() and {n for n in changed if "layers" not in n} == {HEAD} & {HEAD * has_head}
    if not num_layers:
        with pytest.raises(CheckpointError, match="without --format peft"):
            export_adapter(config, checkpoint, tmp_path / "adapter")
        return

    # The adapter by itself: merged it is the same export, and PEFT opens it.
    export_adapter(config, checkpoint, tmp_path / "adapter")
    export(config, tmp_path / "adapter", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    replaced = tmp_path / "adapter" / "replaced.safetensors"
    replaced = load_file(replaced) if replaced.exists() else {}
    assert set(replaced) == {HEAD} & {HEAD * has_head}
    assert [name for name in out if not torch.equal(out[name], again[name])] == []
    base.load_state_dict(replaced, strict=False)
    PeftModel.from_pretrained(base.language_model, tmp_path / "adapter" / "language_model")
    assert distance(base.eval()) == 0


def test_what_cannot_be_merged_or_matches_no_layer_does_not_train(toy_base):
    for part, options, message in (
        ("llm", {"lora_bias": True}, "LoRA settings: .*lora_bias can't be merged"),
        ("llm", {"init_lora_weights": "pissa"}, "LoRA settings: .*pissa"),
        ("llm", {"target_modules": ["embed_tokens"]}, "target_modules: model.embed_tokens is no linear layer"),
        # PEFT would adapt q_proj alone
        (
            "llm",
            {"target_modules": ["q_proj", "k_porj"]},
            "no layer matches 'k_porj'; .* of down_proj, gate_proj, k_pr",
        ),
        (
            "llm",
            {"target_modules": "q_proj"},
            "no layer matches 'q_proj'; ",
        ),  # an expression that no whole name matches
        (
            "visual_encoder",
            {"target_modules": ["q_proj"]},
            "no layer matches 'q_proj'; .* of fc1, fc2, proj, qkv, or No",
        ),
    ):
        with pytest.raises(ValueError, match=f"{part}_lora: .*{message}"):
            build(toy_base, **{f"{part}_lora": {**PLAIN, **options}})


def test_autocast_gives_adapters_their_inputs_as_they_are(toy_base):
    """Float32 adapters beside a bfloat16 base: products are bfloat16. DoRA's norms are float32, as in an export."""
    without = build(toy_base, dtype="bfloat16").train()
    expected = run(without, make_batch(without))["loss"].detach()
    for is_dora, of_inputs in ((False, torch.bfloat16), (True, torch.float32)):
        model, dtypes = build(toy_base, dtype="bfloat16", llm_lora=PLAIN | dict(use_dora=is_dora)).train(), set()

        def note(module, x, y, dtypes=dtypes):
            dtypes.add((x[0].dtype, module.weight.dtype, y.dtype))

        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_hook(note)
        loss, gradients = backward(model, make_batch(model))
        assert dtypes == {(of_inputs, torch.float32, torch.bfloat16)}
        assert is_dora or abs(loss - expected) < 1e-6
        assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if ".lora_B." in name)
