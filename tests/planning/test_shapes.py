"""Released models: shapes are those of the real classes, and each base has the learning rate that fits it."""

import re
from itertools import cycle

import torch

from benchmarks.random_model import config_of
from xtuner_plugins.families import PARTS
from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel
from xtuner_plugins.models.adapters import inject_lora
from xtuner_plugins.planning.job import Adapters
from xtuner_plugins.planning.published import BASES, released_rate
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.settings import leaves, read_config

KINDS = ("SigLIP-Qwen2.5-0.5B", "CLIP-Qwen-7B", "InternVL2-4B", "InternVL3_5-8B-Flash-base", "InternVL3_5-30B-A3B")
KINDS += ("InternVL2-1B", "InternVL2-26B")
TARGETS = cycle((["o_proj", "down_proj"], r".*\.self_attn\.o_proj", "all-linear"))  # as PEFT reads them
PUBLISHED = """
InternVL2-1B 0.9382, InternVL2-8B 8.08, InternVL2-26B 25.5
InternVL2_5-2B 2.206, InternVL2_5-4B 3.71
InternVL3-8B 7.94, InternVL3-14B 15.1, InternVL3-38B 38.4
InternVL3_5-1B 1.061, InternVL3_5-8B 8.53, InternVL3_5-30B-A3B 30.8"""


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_totals_are_those_of_model_cards_and_stored_tensors():
    """In billions, with as many digits."""
    for name, billions, digits in re.findall(r"(\S+) (\d+\.(\d+))", PUBLISHED):
        assert f"{shape_of(BASES[name].config).parameters / 1e9:.{len(digits)}f}" == billions, name
    assert all(shape_of(base.config).parameters > 0 for base in BASES.values())


def test_shapes_are_those_of_the_classes():
    for name in KINDS:
        config = config_of(BASES[name], blocks=2)
        shape = shape_of(config.to_dict())
        with torch.device("meta"):
            model = InternVLChatModel(config)
        for part, (tower, _, _) in PARTS.items():
            assert shape.part(part) == count(model.get_submodule(tower)), (name, part)
        assert shape.mlp2 == (count(model.mlp2) if shape.flash else 0) and shape.parameters == count(model)
        assert shape.tokens_per_tile == model.num_image_token
        assert shape.projector_input == next(m.in_features for m in model.mlp1.modules() if hasattr(m, "in_features"))
        unused = getattr(model.vision_model, "unused_modules", lambda layer: [])(model.select_layer)
        assert shape.unused == sum(map(count, unused))
        for stack, tower in ((shape.encoder, model.vision_model), (shape.llm, model.language_model)):
            norms = {type(module).__name__ for name, module in tower.named_modules() if "norm" in name}
            assert stack.rms_norm == any("RMS" in norm for norm in norms)
            for linear in stack.linears:
                layer = tower.get_submodule(f"{stack.prefix}.0.{linear.name}")
                found = layer.in_features, layer.out_features, layer.bias is not None
                assert found == (linear.inputs, linear.outputs, linear.bias), (name, linear.name)
        targets = next(TARGETS)
        inject_lora(model.language_model, {"r": 4, "target_modules": targets}, ())
        adapters = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad)
        assert Adapters(4, targets, False).parameters(shape.llm) == adapters, (name, targets)


def test_leaves_of_released_bases_have_the_rate_of_their_size():
    for base, *rates in (
        ("models/InternVL3_5-1B", 1e-5, 1e-4),
        ("/data/InternVL3-8B-Instruct", 2e-5, 1e-4),
        ("models/InternVL3_5-30B-A3B", 2e-5, 5e-5),
        ("models/InternVL2_5-8B", 4e-5, 1e-4),
        ("models/InternVL-Chat-V1-5", 2e-5, 5e-5),
        ("exports/pretrain_mlp", None, None),
    ):
        assert [released_rate(base, has_lora=has_lora) for has_lora in (False, True)] == rates, base
    for name, path in leaves().items():
        config = read_config(name)
        if (
            path.parent.name.startswith("internvl_v")
            and name != "internvl_v3_5_sft"
            and "objectives" not in config.model
        ):
            rate = released_rate(config.model.base, has_lora=bool(config.model.get("llm_lora")))
            assert rate == config.optim_wrapper.optimizer.lr, name
