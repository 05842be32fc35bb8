"""A Flash model from parts to answers: its directory is complete, converts, and is asked like any other."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

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


@torch.no_grad()
@pytest.mark.parametrize("order", ["v1", "v2"])
def test_a_new_mlp2_is_the_projector_on_the_mean_of_four_tokens(toy_base, tmp_path, order):
    generator = torch.Generator().manual_seed(0)
    drawn = {name: tensor for name, tensor in open_weights(toy_base).items() if name.startswith("mlp1.")}
    drawn = {name: torch.randn(tensor.shape, generator=generator) / 4 for name, tensor in drawn.items()}
    save_file(drawn, tmp_path / "drawn.safetensors")
    parts = {"projector": tmp_path / "drawn.safetensors", "max_tiles": 6, "dtype": "float32"}
    build_base(toy_base, toy_base, tmp_path / "flash", **parts, flash=True)
    model = load_model(tmp_path / "flash").float().eval()
    model.ps_version, width = order, model.config.vision_config.hidden_size

    alike = torch.randn(2, 2, 2, 2, 2, width, generator=generator)  # tile, row and column of cells, patches of a cell
    grid = alike.repeat(1, 1, 1, 2, 2, 1).transpose(2, 3).reshape(2, 64, width)
    few, many = model.project_compressed(grid), model.project(grid).view(2, 2, 2, 2, 2, -1)
    assert all((few.view(2, 2, 2, -1) - many[:, :, y, :, x]).abs().max() < 1e-4 for y in (0, 1) for x in (0, 1))

    patches = torch.randn(2, 64, width, generator=generator)
    cells = model.pixel_shuffle(patches.view(2, 8, 8, width), 0.25).flatten(1, 2)
    normal = torch.nn.functional.layer_norm(cells, cells.shape[-1:]).view(2, 4, 2, 2, 2, 2, width)
    mean = normal.mean((2, 4)).flatten(2) * model.mlp1[0].weight + model.mlp1[0].bias
    assert (model.project_compressed(patches) - model.mlp1[1:](mean)).abs().max() < 1e-4
