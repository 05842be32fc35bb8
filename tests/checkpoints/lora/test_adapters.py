"""Adapters as PEFT directories: PEFT opens them, and they are checkpoints themselves."""

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints.training import SETTINGS, chat_inputs, logits, make_model, save_pth, with_context, write_config
from xtuner_plugins.checkpoints.export import export
from xtuner_plugins.checkpoints.io.reader import CheckpointError
from xtuner_plugins.checkpoints.loader import load_model, load_trained
from xtuner_plugins.checkpoints.lora.adapters import export_adapter


def test_adapter_only(toy_base, tmp_path):
    from peft import PeftModel

    trained = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(tmp_path / "c.py", toy_base, **SETTINGS["both_loras"])
    checkpoint = save_pth(trained, tmp_path / "iter_1.pth")
    done = export_adapter(config, checkpoint, tmp_path / "adapter")
    assert done["parts"] == ["language_model", "vision_model"]
    model, _ = load_model(toy_base, dtype=None)
    model.load_state_dict(load_file(tmp_path / "adapter" / "replaced.safetensors"), strict=False)
    PeftModel.from_pretrained(model.language_model, tmp_path / "adapter" / "language_model")
    PeftModel.from_pretrained(model.vision_model, tmp_path / "adapter" / "vision_model")
    inputs = chat_inputs(trained.model)
    assert torch.equal(logits(with_context(model.eval(), trained.model), inputs), logits(trained.model, inputs))
    # and such an adapter is itself a checkpoint
    export(config, tmp_path / "adapter" / "language_model", tmp_path / "llm_only")
    merged = load_file(tmp_path / "llm_only" / "model.safetensors")
    full = load_trained(config, checkpoint, dtype=None).state_dict()
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    assert torch.equal(merged[name], full[name])
    config = write_config(tmp_path / "p.py", toy_base)
    with pytest.raises(CheckpointError, match="holds no LoRA tensors"):
        export_adapter(config, save_pth(make_model(toy_base), tmp_path / "p.pth"), tmp_path / "none")
