"""Vision towers: their features are those of transformers' own models, whatever form of directory they come from."""

import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.vision_towers import NORMALIZATION, write_tower
from xtuner_plugins.datasets.base import work_rates
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.base.towers import is_unused, read_vision
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.models.blocks import freeze_unused
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.plan import job_of
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.planning.work import work_of
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

IMAGENET = IMAGENET_MEAN, IMAGENET_STD
SIZES = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
DINOV2 = dict(**SIZES, image_size=70, patch_size=14, mlp_ratio=3)
DINOV3 = dict(**SIZES, intermediate_size=128, image_size=224)


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def write(folder, name, **config):
    """A random model of transformers whose parameters all differ from what they begin with."""
    kind, torch_rng = getattr(transformers, name), torch.manual_seed(0)
    model = kind(kind.config_class(**config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch_rng)
    model.save_pretrained(folder)
    return getattr(model, "dinov2", model)


# Class of transformers and its config, side of a tile, tokens before those of patches.
TOWERS = {
    "clip": ("", {}, 112, 1),
    "siglip": ("", {}, 112, 0),
    "dinov2": ("Dinov2Model", DINOV2, 56, 1),
    "classifier": ("Dinov2ForImageClassification", {**DINOV2, "qkv_bias": False}, 84, 1),
    # As the releases: small ones with four registers, the largest with gated layers
    "dinov3": ("DINOv3ViTModel", {**DINOV3, "num_register_tokens": 4}, 96, 5),
    "gated": ("DINOv3ViTModel", {**DINOV3, "use_gated_mlp": True, "key_bias": True}, 96, 1),
}


@torch.no_grad()
def test_features_equal_those_of_transformers(toy_parts, tmp_path):
    """For pixels by ImageNet's numbers those that the tower has for pixels by its own; also while it trains."""
    for name, (kind, config, size, before) in TOWERS.items():
        tower, base, own = tmp_path / name, tmp_path / f"{name}-base", NORMALIZATION.get(name, IMAGENET)
        theirs = write(tower, kind, **config) if kind else write_tower(tower, name)
        build_base(tower, toy_parts[1], base, dtype="float32", tile_size=size)
        model, pixels = load_model(base, dtype=None).train(), torch.rand(2, 3, size, size)
        most, layer = (12, -1) if kind else (1, -2)
        hidden = theirs(normalized(pixels, *own), output_hidden_states=True).hidden_states[layer][:, before:]
        found = model.encode_tiles(normalized(pixels, *IMAGENET))
        # fp32 rounding of folded weights and of sums over 588 products, through two layers
        assert (found - hidden).abs().max() <= 1e-5 * hidden.abs().max(), name
        read = model.config.max_dynamic_patch, model.config.select_layer, model.config.force_image_size
        assert read == (most, layer, size) and model.config.vision_config.num_hidden_layers == 3, name
        if kind == "DINOv3ViTModel":
            freeze_unused(model.vision_model, -1)
            parameters, fields = dict(model.vision_model.named_parameters()), read_json(base / "config.json")
            frozen = {name for name in parameters if not parameters[name].requires_grad}
            assert frozen == {"vision_model.norm.weight", "vision_model.norm.bias"}
            assert frozen == {name for name in parameters if is_unused(f"vision_model.{name}", fields)}
            assert model.extract_feature(pixels).shape[:2] == (2, model.num_image_token) == (2, 9)
            shape, num_parameters = shape_of(fields), sum(parameter.numel() for parameter in parameters.values())
            planned = shape.part("visual_encoder"), shape.positions, shape.tokens_per_tile
            assert planned == (num_parameters, 36 + before, 9)
            job = job_of({"model": {"base": "x"}}, shape, (Batch(1, 1, 1),))
            most = work_of(job, Batch(0, 1, 0)).encoder  # the rate counts patches alone
            assert most / (1 + before / 36) ** 2 <= work_rates(model.config)[2] <= most


@torch.no_grad()
def test_an_intern_vit_is_cut_and_folded(toy_parts, tmp_path):
    mean, std = NORMALIZATION["clip"]
    options = {"plain": {}, "cut": {"select_layer": -2}, "folded": {}}
    tower = shutil.copytree(toy_parts[0], tmp_path / "tower")
    for name, each in options.items():
        if name == "folded":
            write_json(tower / "preprocessor_config.json", {"image_mean": mean, "image_std": std})
        build_base(tower, toy_parts[1], tmp_path / name, dtype="float32", **each)
    plain, cut, folded = (load_model(tmp_path / name, dtype=None).vision_model for name in options)
    pixels = torch.rand(2, 3, 112, 112)
    given = normalized(pixels, *IMAGENET)
    reference = plain(pixel_values=given, output_hidden_states=True)
    assert torch.equal(cut(pixel_values=given).last_hidden_state, reference.hidden_states[-2])
    expected = plain(normalized(pixels, mean, std)).last_hidden_state
    assert (folded(given).last_hidden_state - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(cut.encoder.layers) == 1 and (reference.last_hidden_state - expected).abs().max() > 1e-3


def test_other_forms_of_clip_and_siglip_give_the_same_base(toy_parts, tmp_path):
    """Within a whole model, without its text side and SigLIP's pooling head; and as the newest transformers save it."""
    for kind in NORMALIZATION:
        tower, whole, flat = (tmp_path / f"{kind}-{form}" for form in ("tower", "whole", "flat"))
        for folder in (tower, whole, flat):
            write_tower(folder, kind, whole=folder == whole)
        held = load_file(flat / "model.safetensors")
        held = {name.removeprefix("vision_model."): tensor for name, tensor in held.items()}
        save_file(held, flat / "model.safetensors", metadata={"format": "pt"})
        write_json(flat / "preprocessor_config.json", {"image_mean": [0.1] * 3})  # half of it: the default
        files = []
        for folder in (tower, whole, flat):
            notes = build_base(folder, toy_parts[1], base := folder.with_suffix(".base"), dtype="float32")["notes"]
            assert any("own model code only" in note and "--format llava" in note for note in notes)
            files.append([(base / name).read_bytes() for name in ("config.json", "model.safetensors")])
        assert files[0] == files[1] == files[2]


def test_sizes_and_refusals(toy_parts, tmp_path, refused):
    for name in ("odd", "registers"):
        write(tmp_path / name, "Dinov2Model", **DINOV2)
    write(tmp_path / "gated", "Dinov2Model", **DINOV2, use_swiglu_ffn=True)
    write(tmp_path / "dinov3", "DINOv3ViTModel", **DINOV3)
    write_tower(tmp_path / "tower", "clip")
    write_tower(tmp_path / "empty", "clip")
    (tmp_path / "empty/model.safetensors").write_bytes((toy_parts[1] / "model.safetensors").read_bytes())
    fields = read_json(tmp_path / "odd/config.json")
    write_json(tmp_path / "registers/config.json", {**fields, "model_type": "dinov2_with_registers"})
    dinov2, dinov3 = read_vision(tmp_path / "odd", select_layer=-2), read_vision(tmp_path / "dinov3")
    assert dinov2.config["num_hidden_layers"] == 2
    assert dinov2.config["image_size"] == dinov3.config["image_size"] == 448
    for directory, options, words in (
        (tmp_path / "odd", {"tile_size": 70}, "tile_size = 70 must be a multiple of 28"),
        (tmp_path / "dinov3", {"tile_size": 80}, "tile_size = 80 must be a multiple of 32"),
        (toy_parts[0], {"tile_size": 224}, "tile_size = 224: this tower takes 112 pixels"),
        (tmp_path / "gated", {}, "has SwiGLU layers"),
        (tmp_path / "registers", {}, "known are"),
        (tmp_path / "tower", {"select_layer": -4}, "select_layer = -4 is outside -1 .. -3"),
        (toy_parts[0], {"select_layer": -3}, "select_layer = -3 is outside -1 .. -2"),
        (toy_parts[0], {"select_layer": 0}, "select_layer = 0 is outside -1 .. -2"),
        (tmp_path / "empty", {}, "says clip_vision_model, but holds no such weights"),
    ):
        refused(words, read_vision, directory, **options, error=ValueError)
