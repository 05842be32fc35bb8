"""Adapters as PEFT directories: PEFT opens them, and they are checkpoints themselves."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.weights.training import (
    RSLORA,
    VISION_LORA,
    chat_inputs,
    logits,
    make_model,
    save_pth,
    with_context,
    write_config,
)
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import export
from xtuner_plugins.export.trained import lay_over
from xtuner_plugins.weights import record
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import CheckpointError

BOTH = {"llm_lora": {**RSLORA, "use_dora": True}, "visual_encoder_lora": VISION_LORA}


@pytest.fixture(scope="module")
def case(toy_base, tmp_path_factory):
    """The trained model, its checkpoint with a record, and the adapter that was written from it without a config."""
    folder = tmp_path_factory.mktemp("adapter")
    trained = make_model(toy_base, **BOTH)
    checkpoint = save_pth(trained, folder / "iter_1.pth")
    assert export_adapter(None, checkpoint, folder / "adapter")["parts"] == ["language_model", "vision_model"]
    return trained, checkpoint, folder / "adapter"


def test_peft_opens_each_part(toy_base, case, recwarn):
    from peft import PeftModel

    trained, _, adapter = case
    model = load_model(toy_base, dtype=None)
    model.load_state_dict(load_file(adapter / "replaced.safetensors"), strict=False)
    for part in ("language_model", "vision_model"):
        PeftModel.from_pretrained(model.get_submodule(part), adapter / part)
    assert not [each for each in recwarn if "Unexpected keyword" in str(each.message)]
    assert json.loads((adapter / "export_manifest.json").read_text())["base"] == record.base_facts(toy_base)
    inputs = chat_inputs(trained.model)
    assert torch.equal(logits(with_context(model.eval(), trained.model), inputs), logits(trained.model, inputs))


def test_the_adapter_exports_as_the_checkpoint_does(case, tmp_path):
    """All of it: DoRA's sizes, the vision tower's adapter and the trained projector."""
    _, checkpoint, adapter = case
    for name, source in (("direct", checkpoint), ("by_adapter", adapter)):
        export(None, source, tmp_path / name)
    direct, by_adapter = (load_file(tmp_path / name / "model.safetensors") for name in ("direct", "by_adapter"))
    assert direct.keys() == by_adapter.keys() and all(torch.equal(direct[key], by_adapter[key]) for key in direct)


def test_on_another_base_or_in_part_it_is_refused(toy_base, case, tmp_path):
    shutil.copytree(toy_base, tmp_path / "base")
    fields = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**fields, "select_layer": -2}))
    with pytest.raises(CheckpointError, match="belongs to another base: config.json"):
        lay_over(write_config(tmp_path / "c.py", tmp_path / "base", **BOTH), case[2])
    with pytest.raises(CheckpointError, match="give the directory above it .*merge_and_unload"):
        lay_over(None, case[2] / "language_model")


def test_a_changed_file_is_refused(case, tmp_path):
    for name in ("record.json", "language_model/adapter_config.json"):
        adapter = shutil.copytree(case[2], tmp_path / name[:6])
        (adapter / name).write_text((adapter / name).read_text() + " ")
        with pytest.raises(CheckpointError, match=f"not as it was exported: {name} changed"):
            lay_over(None, adapter)


def test_without_adapters_there_is_nothing_to_write(toy_base, tmp_path):
    with pytest.raises(CheckpointError, match="holds no LoRA tensors"):
        export_adapter(None, save_pth(make_model(toy_base), tmp_path / "p.pth"), tmp_path / "none")
