"""Released models: shapes are those of the real classes, and each base has the learning rate that fits it."""

import re
from itertools import cycle

import torch

from benchmarks.random_model import config_of
from xtuner_plugins.families import PARTS, families_of
from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel
from xtuner_plugins.models.trainable import inject_lora
from xtuner_plugins.planning.job import Adapters
from xtuner_plugins.planning.published import BASES, other_rate
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.settings import leaves, read_config

KINDS = ("SigLIP-Qwen2.5-0.5B", "CLIP-Qwen-7B", "InternVL2-4B", "InternVL3_5-8B-Flash-base", "InternVL3_5-30B-A3B")
KINDS += ("InternVL2-1B", "InternVL2-26B")
TARGETS = cycle((None, r".*\.(o_proj|attn\.proj|out_proj)", "all-linear"))  # as PEFT reads them
PUBLISHED = """
InternVL2-1B 0.9382, InternVL2-8B 8.08, InternVL2-26B 25.5
InternVL2_5-2B 2.206, InternVL2_5-4B 3.71
InternVL3-8B 7.94, InternVL3-14B 15.1, InternVL3-38B 38.4
InternVL3_5-1B 1.061, InternVL3_5-8B 8.53, InternVL3_5-30B-A3B 30.8"""


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_totals_are_those_of_model_cards_and_stored_tensors():
    for name, billions, digits in re.findall(r"(\S+) (\d+\.(\d+))", PUBLISHED):
        assert f"{shape_of(BASES[name].config).parameters / 1e9:.{len(digits)}f}" == billions, name
    towers = {"CLIP-Qwen-7B": 303_179_776, "LLaVA-Qwen2.5-3B": 303_507_456}  # as stored
    assert {name: shape_of(BASES[name].config).encoder.parameters for name in towers} == towers
    rows = {"InternVL2-1B": (151655, -1), "InternVL3-1B": (151674, -1), "LLaVA-Qwen2.5-3B": (151674, -2)}
    for name, expected in rows.items():  # token rows as published, and the layer that CLIP's features are of
        config = BASES[name].config
        assert (config["llm_config"]["vocab_size"], config["select_layer"]) == expected, name


def test_shapes_are_those_of_the_classes():
    for name in KINDS:
        config = config_of(BASES[name], blocks=2)
        config.llm_config.tie_word_embeddings = name == "InternVL2-1B"
        shape = shape_of(config.to_dict())
        with torch.device("meta"):
            model = InternVLChatModel(config)
        for part, (tower, _, _) in PARTS.items():
            assert shape.part(part) == count(model.get_submodule(tower)), (name, part)
        assert shape.part("mlp2") == (count(model.mlp2) if shape.flash else 0) and shape.parameters == count(model)
        assert shape.tokens_per_tile == model.num_image_token
        assert shape.projector_input == next(m.in_features for m in model.mlp1.modules() if hasattr(m, "in_features"))
        unused = getattr(model.vision_model, "unused_modules", lambda layer: [])(model.select_layer)
        assert shape.unused == sum(map(count, unused))
        for part, family in families_of(config.to_dict()).items():
            tower, targets = model.get_submodule(PARTS[part].attribute), next(TARGETS) or family.lora_targets
            inject_lora(tower, {"r": 4, "target_modules": targets}, ())
            adapters = sum(p.numel() for p in tower.parameters() if p.requires_grad)
            stack = shape.encoder if part == "visual_encoder" else shape.llm
            assert Adapters(4, targets, False).parameters(stack) == adapters, (name, part, targets)


def test_leaves_of_released_bases_have_the_rate_of_their_size():
    for name, path in leaves().items():
        config = read_config(name)
        if path.parent.name.startswith("internvl_v") and "sft" not in name and "objectives" not in config.model:
            rate = config.optim_wrapper.optimizer.lr
            assert (other_rate(config.model, rate), other_rate(config.model, 1.0)) == (None, rate), name
            others = {"base": "models/x"}, {"objectives": {"dpo": 1}}, {"llm_lora": None, "freeze_llm": True}
            assert all(other_rate({**config.model, **other}, 1.0) is None for other in others), name
