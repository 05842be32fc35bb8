"""What a checkpoint lays over its base: tensors by their names in training, and settings by its record alone."""

import shutil

import pytest
import torch

from tests.weights.training import LORA, RSLORA, make_model, record_of, save_pth, write_config
from xtuner_plugins.export.trained import lay_over
from xtuner_plugins.weights import record
from xtuner_plugins.weights.model_view import open_model
from xtuner_plugins.weights.preprocessing import TOKEN_RULES

HEAD, QUERY = "language_model.lm_head", "language_model.model.layers.0.self_attn.q_proj"


def test_names_of_training(toy_base, tmp_path, refused):
    """Wrappers are taken off; what the base has already, and what is no weight, changes nothing."""
    base, model = open_model(toy_base).tensors, make_model(toy_base)
    projector = {name: value for name, value in model.state_dict().items() if ".mlp1." in name}
    layer, untouched = "language_model.model.layers.0.mlp.up_proj", "language_model.model.layers.1.mlp.up_proj.weight"
    state = {
        **{f"module.{name}": value for name, value in projector.items()},
        f"model.{HEAD}.modules_to_save.default.weight": base[f"{HEAD}.weight"].read() + 1,
        f"model.{HEAD}.original_module.weight": base[f"{HEAD}.weight"].read(),
        f"model.{layer}.base_layer.weight": base[f"{layer}.weight"].read(),
        f"model.{QUERY}.base_layer.weight": torch.zeros(8, 1, dtype=torch.uint8),  # 4-bit numbers
        f"model.{QUERY}.base_layer.weight.absmax": torch.ones(2),
        "data_preprocessor.mean": torch.ones(3),
    }
    plan = lay_over(None, save_pth(model, tmp_path / "iter_1.pth", state=state))
    assert set(plan.replaced) == {*(n for n in base if n.startswith("mlp1.")), f"{HEAD}.weight", f"{layer}.weight"}
    tensors = plan.tensors(merged=True)
    assert list(tensors) == list(base) and tensors[untouched] is plan.view.tensors[untouched]
    assert torch.equal(tensors[f"{HEAD}.weight"].read(), base[f"{HEAD}.weight"].read() + 1)

    name = next(iter(projector))
    del state[f"module.{name}"]
    words = f"trained mlp1, but it lacks 1 of its tensors: {name[6:]}"
    refused(words, lay_over, None, save_pth(model, tmp_path / "iter_1.pth", state=state))
    model.made_with["freeze_projector"] = True
    assert lay_over(None, save_pth(model, tmp_path / "iter_1.pth", state=state)).replaced


@pytest.fixture(scope="module")
def recorded(toy_base, tmp_path_factory):
    """A run with another LoRA scale than its config says now: the checkpoint, that config, the model."""
    folder = tmp_path_factory.mktemp("recorded")
    model = make_model(toy_base, llm_lora=RSLORA)
    rule = {"min_tiles": 1, "max_tiles": 6, "use_thumbnail": True, "template": "internvl2_5"}
    lock = {"datasets": [rule, {**rule, "max_tiles": 4}], "token_rules": TOKEN_RULES}
    checkpoint, config = save_pth(model, folder / "iter_1.pth", preprocessing=lock), folder / "now.py"
    write_config(config, toy_base, llm_lora=LORA)
    with config.open("a") as file:
        file.write("train_dataloader = dict(dataset=dict(max_tiles=2, min_tiles=1, template=None))\n")
    return checkpoint, config, model


def test_the_checkpoint_counts_not_the_config(recorded):
    checkpoint, config, model = recorded
    plans, name = [lay_over(None, checkpoint), lay_over(config, checkpoint)], f"{QUERY}.weight"
    live = model.get_submodule(f"model.{QUERY}")
    live.merge()
    for plan in plans:
        assert plan.tensors(merged=False)[name] is plan.view.tensors[name]
        torch.testing.assert_close(plan.tensors(merged=True)[name].read(), live.get_base_layer().weight)
    silent, (note,) = ([note for note in plan.notes if "counts" in note] for plan in plans)
    assert silent == [] and "llm_lora.lora_alpha=64 (the config: 8)" in note
    assert "llm_lora.use_rslora=True (the config: None), max_tiles=6 (the config: 2)" in note


def test_a_record_that_lacks_or_lies(toy_base, recorded, tmp_path, refused):
    whole, unreadable = record_of(toy_base), "iter_1.pth: the record of its run holds something else than it should"
    files = {**whole["base"]["files"], "config.json": 1}
    broken = [{"base": {}}, {"base": {"path": "b", "files": files}}, {"settings": {}}, {"settings": {"model": [1]}}]
    table = [({**whole, **each}, unreadable) for each in (*broken, {"settings": {"model": {"llm_lora": 3}}})]
    table += [(record_of(toy_base, llm_lora={**RSLORA, "r": 8}), r"adapter is .* r=8 and use_dora=False need")]
    table += [("x", unreadable), (None, "holds no record of its run .*export it with the version that wrote it")]
    for said, words in table:
        refused(words, lay_over, recorded[1], save_pth(recorded[2], tmp_path / "iter_1.pth", record=said))


def test_another_base_is_refused(toy_base, recorded, tmp_path, refused):
    for name in ("config.json", "vocab.json", "model.safetensors"):
        base = shutil.copytree(toy_base, tmp_path / name)
        (base / name).write_bytes((base / name).read_bytes() + b"\n")
        config = write_config(tmp_path / "c.py", base, llm_lora=RSLORA)
        refused(f"belongs to another base: {name} of .* has SHA-256", lay_over, config, recorded[0])


def test_the_base_is_found_where_the_config_or_the_record_says(recorded, tmp_path, refused):
    elsewhere = write_config(tmp_path / "c.py", "nowhere", llm_lora=RSLORA)
    assert lay_over(elsewhere, recorded[0]).view.directory == lay_over(None, recorded[0]).view.directory
    content = torch.load(recorded[0], weights_only=False)
    content[record.KEY]["base"]["path"] = "gone"
    torch.save(content, tmp_path / "iter_1.pth")
    refused("iter_1.pth does not exist: nowhere nor gone; .*--set base=", lay_over, elsewhere, tmp_path / "iter_1.pth")
    elsewhere.write_text("model = dict()")
    refused(r"c\.py has no model\.base", lay_over, elsewhere, recorded[0], error=ValueError)
