"""A checkpoint laid over its base: every stored name finds its place, and parts that don't fit are named."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from peft import LoraConfig

from tests.checkpoints.training import LORA, SETTINGS, make_model, save_pth, write_config
from xtuner_plugins.checkpoints import trained
from xtuner_plugins.checkpoints.formats import open_model
from xtuner_plugins.checkpoints.io.reader import CheckpointError
from xtuner_plugins.checkpoints.lora import merge

HEAD = "language_model.lm_head"


@pytest.fixture(scope="module")
def state(toy_base):
    """Trained weights of the projector, under their stored names."""
    return {name: value for name, value in make_model(toy_base).state_dict().items() if ".mlp1." in name}


def lay(folder, base, state, **settings):
    torch.save({"state_dict": state}, folder / "iter_1.pth")
    return trained.lay_over(write_config(folder / "c.py", base, **settings), folder / "iter_1.pth")


def test_names_of_training(toy_base, state, tmp_path):
    """Wrappers are taken off; what the base has already, and what is no weight, changes nothing."""
    base = open_model(toy_base).tensors
    layer, frozen = "language_model.model.layers.0.mlp.up_proj", "model.language_model.model.layers.0.self_attn.q_proj"
    plan = lay(
        tmp_path,
        toy_base,
        {
            **{f"module.{name}": value for name, value in state.items()},
            f"model.{HEAD}.modules_to_save.default.weight": base[f"{HEAD}.weight"].read() + 1,
            f"model.{HEAD}.original_module.weight": base[f"{HEAD}.weight"].read(),
            f"model.{layer}.base_layer.weight": base[f"{layer}.weight"].read(),
            f"{frozen}.base_layer.weight": torch.zeros(8, 1, dtype=torch.uint8),  # 4-bit numbers
            f"{frozen}.base_layer.weight.absmax": torch.ones(2),
            "data_preprocessor.mean": torch.ones(3),
        },
    )
    projector = {name for name in base if name.startswith("mlp1.")}
    assert set(plan.replaced) == {*projector, f"{HEAD}.weight", f"{layer}.weight"}
    tensors = plan.tensors(merged=True)
    assert list(tensors) == list(base)
    assert torch.equal(tensors[f"{HEAD}.weight"].read(), base[f"{HEAD}.weight"].read() + 1)
    untouched = "language_model.model.layers.1.mlp.up_proj.weight"
    assert tensors[untouched] is plan.view.tensors[untouched]


def test_adapters_are_paired_with_their_settings(toy_base, tmp_path):
    model = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(tmp_path / "c.py", toy_base, **SETTINGS["both_loras"])
    plan = trained.lay_over(str(config), save_pth(model, tmp_path / "iter_1.pth"))
    assert set(plan.lora_configs) == {"vision_model", "language_model"}
    assert isinstance(plan.lora_configs["language_model"], merge.PlainLora) and plan.lora_configs["vision_model"].r == 2
    assert len(plan.adapters) == 10 and all(
        set(p) == {"lora_A.weight", "lora_B.weight"} for p in plan.adapters.values()
    )
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert plan.tensors(merged=False)[name] is plan.view.tensors[name]
    assert not torch.equal(plan.tensors(merged=True)[name].read(), plan.view.tensors[name].read())


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.language_model."])
def test_adapter_of_the_whole_or_of_a_part(prefix, toy_base, tmp_path):
    from safetensors.torch import save_file

    layer = "model.layers.0.self_attn.q_proj"
    LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]).save_pretrained(tmp_path)
    parts = {"lora_A": torch.ones(2, 64), "lora_B": torch.ones(64, 2)}
    save_file({f"{prefix}{layer}.{k}.weight": v for k, v in parts.items()}, tmp_path / "adapter_model.safetensors")
    plan = trained.lay_over(write_config(tmp_path / "c.py", toy_base), tmp_path)
    assert list(plan.adapters) == [f"language_model.{layer}"]
    merged = plan.tensors(merged=True)[f"language_model.{layer}.weight"].read()
    torch.testing.assert_close(merged, plan.view.tensors[f"language_model.{layer}.weight"].read() + 2)


def test_other_kinds_of_adapters(toy_base, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match="of type IA3; only LORA"):
        trained.lay_over(write_config(tmp_path / "c.py", toy_base), tmp_path)


def test_missing_parts_are_named(toy_base, state, tmp_path):
    name = next(iter(state))
    state = {other: value for other, value in state.items() if other != name}
    with pytest.raises(CheckpointError, match=rf"trains mlp1 .*lacks 1 of its tensors: {name.removeprefix('model.')}"):
        lay(tmp_path, toy_base, state)
    assert lay(tmp_path, toy_base, state, freeze_projector=True).replaced.keys() < {n[6:] for n in [*state, name]}


def test_unknown_options_of_lora(toy_base, state, tmp_path):
    with pytest.raises(CheckpointError, match="the LoRA settings of the config: .*rank"):
        lay(tmp_path, toy_base, state, llm_lora={**LORA, "rank": 2})


def test_nothing_to_choose_from(toy_base, state, tmp_path):
    plan = lay(tmp_path, toy_base, state)
    assert plan.preprocessing is None and plan.settle() is plan and plan.view.settled == {}
    with pytest.raises(CheckpointError, match="nothing to choose with --template or --max-tiles"):
        plan.settle(max_tiles=3)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, r"config .*c\.py does not exist"),
        ("model = dict(", r"c\.py:\d+ cannot be read: SyntaxError"),
        ("model = dict()", r"c\.py has no model\.base"),
        ("model = dict(base='nowhere')", r"model\.base = nowhere of the config does not exist"),
    ],
)
def test_configs(text, message, tmp_path):
    if text is not None:
        (tmp_path / "c.py").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        trained.lay_over(tmp_path / "c.py", Path("iter_1.pth"))


def test_a_loaded_config_is_taken_as_it_is():
    cfg = Config(dict(model=dict(base="x")))
    assert trained.read_training_config(cfg) is cfg
    with pytest.raises(CheckpointError, match=r"the config has no model\.base"):
        trained.read_training_config(Config(dict(model=dict())))
