"""A Flash model from parts to answers: its directory is complete, converts, and is asked like any other."""

import torch
from PIL import Image

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert
from xtuner_plugins.families import FLASH
from xtuner_plugins.hub.modeling_flash import FLASH_PARTS
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import Turn
from xtuner_plugins.weights.loader import load_model, read_config
from xtuner_plugins.weights.reading import open_weights


def test_a_flash_directory_is_built_converted_and_asked(toy_base, tmp_path, refused):
    flash, parts = tmp_path / "flash", {"projector": toy_base, "max_tiles": 6, "dtype": "float32"}
    notes = build_base(toy_base, toy_base, flash, **parts, flash=True)["notes"]
    assert any("about 70% of the tiles of a request at most, and never a tile that is alone" in note for note in notes)
    fields = read_config(flash).to_dict()
    assert {name: fields[name] for name in FLASH} == FLASH and (flash / "modeling_flash.py").is_file()
    held, own = open_weights(flash), open_weights(toy_base)
    assert {name.partition(".")[0] for name in held.keys() - own.keys()} == set(FLASH_PARTS)
    assert all(held[name].read().equal(own[name].read().float()) for name in own)

    convert(flash, tmp_path / "half", format="official", dtype="bfloat16")
    half = load_model(tmp_path / "half")
    assert half.mlp2[1].weight.equal(held["mlp2.1.weight"].read().bfloat16())
    assert half.config.flash_relative_threshold == 0.3
    refused("mlp2.* is not a tensor", convert, flash, tmp_path / "hf", format="hf")

    session, read = open_session(flash, device="cpu", dtype="float32"), []
    with torch.no_grad():
        session.model.gating.gate[1].bias[:] = torch.tensor([9.0, 0.0])  # above the absolute threshold

    def watch(_, __, given):
        mask = given["attention_mask"]  # None where nothing is padded, in transformers 5
        read.append(None if mask is None else mask.sum(1).tolist())

    session.model.language_model.model.register_forward_pre_hook(watch, with_kwargs=True)
    items = [("What is it?", [Image.effect_noise(size, 80).convert("RGB")]) for size in ((336, 224), (112, 112))]
    items.append(("Hello.", []))
    answers = session.answers(items, batch_size=3, max_new_tokens=4)
    shorter = [len(session.prompt_ids([Turn(*item)])) - found for item, found in zip(items, read[0], strict=True)]
    assert shorter == [5 * 12, 0, 0]  # of 7 tiles those above 1.8 of 6
    assert answers == [session.answers([item], max_new_tokens=4)[0] for item in items]
