"""Adapters as PEFT directories: PEFT opens them, and they are checkpoints themselves."""

import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.weights import training
from tests.weights.training import RSLORA, VISION_LORA, chat_inputs, logits, make_model, save_pth
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import export
from xtuner_plugins.export.trained import lay_over
from xtuner_plugins.weights import preprocessing, record
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

EMBEDDING, ROWS = "language_model.model.embed_tokens.weight", [3, 500, 7, 505]
BOTH = {"llm_lora": {**RSLORA, "use_dora": True}, "visual_encoder_lora": VISION_LORA}
BOTH["llm_lora"]["trainable_token_indices"] = {"embed_tokens": ROWS, "lm_head": [1]}

RULE = {"min_tiles": 1, "max_tiles": 3, "use_thumbnail": True, "template": "internvl2_5"}
LOCK = {"datasets": [RULE], "token_rules": preprocessing.TOKEN_RULES}


@pytest.fixture(scope="module")
def case(toy_base, tmp_path_factory):
    """The trained model, its checkpoint with a record, and the adapter that was written from it without a config."""
    folder = tmp_path_factory.mktemp("adapter")
    trained = make_model(toy_base, **BOTH)
    checkpoint = save_pth(trained, folder / "iter_1.pth", preprocessing=LOCK)
    assert export_adapter(None, checkpoint, folder / "adapter")["parts"] == ["language_model", "vision_model"]
    return trained, checkpoint, folder / "adapter"


def test_peft_opens_each_part_and_its_export_is_the_checkpoints(toy_base, case, recwarn, tmp_path):
    """All of it: DoRA's sizes, rows of tokens, the vision tower's adapter and the trained projector."""
    trained, checkpoint, adapter = case
    model = load_model(toy_base, dtype=None)
    model.load_state_dict(load_file(adapter / "replaced.safetensors"), strict=False)
    for part in ("language_model", "vision_model"):
        PeftModel.from_pretrained(model.get_submodule(part), adapter / part)
    assert not [each for each in recwarn if "Unexpected keyword" in str(each.message)]
    inputs = chat_inputs(trained.model)
    inputs[1][0, :4] = torch.tensor(ROWS)
    assert torch.equal(logits(model.eval(), inputs), logits(trained.model, inputs))
    assert read_json(adapter / "export_manifest.json")["base"] == record.base_facts(toy_base)
    assert read_json(adapter / preprocessing.FILE) == LOCK
    for name, source in (("direct", checkpoint), ("by_adapter", adapter)):
        (note,) = export(None, source, tmp_path / name)["notes"]
        assert note == "several images of a record shared 3 tiles; serving engines give each of them 3"
    direct, by_adapter = (load_file(tmp_path / name / "model.safetensors") for name in ("direct", "by_adapter"))
    assert direct.keys() == by_adapter.keys() and all(torch.equal(direct[key], by_adapter[key]) for key in direct)
    changed = direct[EMBEDDING] != load_file(toy_base / "model.safetensors")[EMBEDDING]
    assert changed.any(1).nonzero().flatten().tolist() == sorted(ROWS)
    merged = logits(load_model(tmp_path / "direct", dtype=None), inputs)
    assert (merged - logits(trained.model, inputs)).abs().max() <= 1e-5


def test_what_is_refused(toy_base, case, tmp_path, refused):
    """An adapter on another base, a part of it, a changed one; and a checkpoint that holds none."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    write_json(base / "config.json", {**read_json(base / "config.json"), "select_layer": -2})
    other, changed = training.write_config(tmp_path / "c.py", base, **BOTH), tmp_path / "changed"
    shutil.copytree(case[2], changed)
    (changed / "language_model/adapter_config.json").write_text("{}")
    for config, adapter, words in (
        (other, case[2], "belongs to another base: config.json"),
        (None, case[2] / "language_model", "give the directory above it .*merge_and_unload"),
        (None, changed, "not as it was exported: language_model/adapter_config.json changed"),
    ):
        refused(words, lay_over, config, adapter)
    checkpoint = save_pth(make_model(toy_base), tmp_path / "p.pth")
    refused("adapter exists already", export_adapter, None, case[1], case[2])
    refused("holds no LoRA tensors", export_adapter, None, checkpoint, tmp_path / "none")
