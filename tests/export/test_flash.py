"""A Flash model from parts to answers: its directory is complete, converts, and is asked like any other."""

import json

import pytest
import torch
from PIL import Image

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import prepare_conversion, write
from xtuner_plugins.export.gguf import check
from xtuner_plugins.families import FLASH
from xtuner_plugins.hub.modeling_flash import FLASH_PARTS
from xtuner_plugins.inference.session import ChatSession, Turn
from xtuner_plugins.weights.loader import load_model, read_config
from xtuner_plugins.weights.reading import CheckpointError, open_weights


def test_a_flash_directory_is_built_converted_and_asked(toy_base, tmp_path):
    summary = build_base(
        toy_base, toy_base, tmp_path / "flash", projector=toy_base, max_tiles=6, dtype="float32", flash=True
    )
    assert any(
        "about 70% of the tiles of a request at most, and never a tile that is alone" in n for n in summary["notes"]
    )
    fields = json.loads((tmp_path / "flash/config.json").read_text())
    assert {name: fields[name] for name in FLASH} == FLASH and (tmp_path / "flash/modeling_flash.py").is_file()
    held, own = open_weights(tmp_path / "flash"), open_weights(toy_base)
    assert {name.partition(".")[0] for name in held.keys() - own.keys()} == set(FLASH_PARTS)
    assert all(held[name].read().equal(own[name].read().float()) for name in own)

    write(prepare_conversion(tmp_path / "flash", format="official", dtype="bfloat16"), tmp_path / "half")
    half = load_model(tmp_path / "half")
    assert half.mlp2[1].weight.equal(held["mlp2.1.weight"].read().bfloat16())
    assert half.config.flash_relative_threshold == 0.3
    with pytest.raises(CheckpointError, match="mlp2.* is not a tensor"):
        prepare_conversion(tmp_path / "flash", format="hf")
    with pytest.raises(CheckpointError, match="can't run the compressed tiles of a Flash model"):
        check(read_config(tmp_path / "flash").to_dict())

    session = ChatSession.from_pretrained(tmp_path / "flash", device="cpu", dtype="float32")
    with torch.no_grad():
        session.model.gating.gate[1].bias[:] = torch.tensor([9.0, 0.0])  # above the absolute threshold
    read = []
    session.model.language_model.model.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    items = [("What is it?", [Image.effect_noise(size, 80).convert("RGB")]) for size in ((336, 224), (112, 112))]
    items.append(("Hello.", []))
    answers = session.answers(items, batch_size=3, max_new_tokens=4)
    lengths = [len(session.prompt_ids([Turn(*item)])) for item in items]
    assert [whole - found for whole, found in zip(lengths, read[0], strict=True)] == [
        5 * 12,
        0,
        0,
    ]  # of 7 tiles those above 1.8 of 6
    assert answers == [session.answers([item], max_new_tokens=4)[0] for item in items]
