"""Groups by ``paramwise_cfg``: one per set of options, no frozen parameter, also where XTuner drops the settings."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from peft import LoraConfig
from torch import nn
from torch.optim import AdamW

from xtuner_plugins.engine.run.param_groups import (
    GroupedOptimWrapperConstructor,
    keep_grouping,
    planned_groups,
    settle_grouping,
)
from xtuner_plugins.models import VisionLanguageModel

LR, DECAY = 1e-3, 0.1
OPTIMIZER = dict(type=AdamW, lr=LR, weight_decay=DECAY)
STARTS = {"model.vision_model": "visual_encoder", "model.mlp1": "projector", "model.language_model": "lora"}


@pytest.fixture(scope="module")
def vlm(toy_base):
    """Encoder and projector trained whole, the LLM through LoRA."""
    lora = dict(type=LoraConfig, r=4, lora_alpha=8)
    with torch.device("meta"):
        return VisionLanguageModel(str(toy_base), dtype="float32", freeze_visual_encoder=False, llm_lora=lora)


def build(model, **paramwise):
    """The groups of the built optimizer."""
    cfg = ConfigDict(type="OptimWrapper", optimizer=OPTIMIZER)
    return GroupedOptimWrapperConstructor(cfg, ConfigDict(paramwise))(model).optimizer.param_groups


def rates(vlm, **paramwise):
    """{name: (lr, weight decay)} as the built optimizer holds them."""
    names = {id(p): name for name, p in vlm.named_parameters()}
    return {
        names[id(p)]: (each["lr"], each["weight_decay"]) for each in build(vlm, **paramwise) for p in each["params"]
    }


def of_part(name, found):
    return found[next(part for start, part in STARTS.items() if name.startswith(start))]


def below_last_block(name):
    """0.5 for each block above, of two in the toy encoder."""
    if not name.startswith("model.vision_model"):
        return 1
    return 0.5 ** (1 - int(name.split(".")[4]) if ".layers." in name else 2)


PART_LR = dict(visual_encoder=1e-5, projector=1e-4, lora=3e-5, llm=None)
RULES = [
    ({}, lambda name, dims: (LR, DECAY)),
    ({"part_lr": PART_LR}, lambda name, dims: (of_part(name, PART_LR), DECAY)),
    ({"loraplus_lr_ratio": 16}, lambda name, dims: (LR * (16 if ".lora_B." in name else 1), DECAY)),
    ({"visual_encoder_layer_decay": 0.5}, lambda name, dims: (LR * below_last_block(name), DECAY)),
    ({"decay_norms_and_biases": False}, lambda name, dims: (LR, DECAY * (dims > 1))),
    ({"custom_keys": {"mlp1.1": dict(lr_mult=2.0)}}, lambda name, dims: (LR * (1 + ("mlp1.1" in name)), DECAY)),
]


def test_every_trainable_parameter_has_the_options_of_its_rule(vlm):
    """The optimizer's groups, one per set of options, are those that the config plans, inside a wrapper, too."""
    trained = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
    named = f"{GroupedOptimWrapperConstructor.__module__}.{GroupedOptimWrapperConstructor.__qualname__}"
    for rules, expected in RULES:
        held, planned = rates(vlm, **rules), {}
        assert held.keys() == trained.keys()
        for name, parameter in trained.items():
            assert held[name] == pytest.approx(expected(name, parameter.dim())), (rules, name)
            planned[held[name]] = planned.get(held[name], 0) + parameter.numel()
        assert len(build(vlm, **rules)) == len(planned)
        cfg = dict(optim_wrapper=dict(optimizer=OPTIMIZER, paramwise_cfg=rules))
        for constructor in (None, GroupedOptimWrapperConstructor, "GroupedOptimWrapperConstructor", named):
            cfg["optim_wrapper"] |= {"constructor": constructor} if constructor else {}
            assert planned_groups(ConfigDict(cfg), vlm) == pytest.approx(planned)
    wrapped = nn.Module()
    wrapped.module = vlm
    assert len(build(wrapped, part_lr=PART_LR)) == 3
    assert planned_groups(ConfigDict(optim_wrapper=dict(constructor="DefaultOptimWrapperConstructor")), vlm) is None


def test_rules_without_effect_are_refused(vlm):
    for paramwise, message in (
        (dict(part_lr=dict(llm=1e-5)), "a learning rate is set for llm, but nothing of it trains"),
        (dict(part_lr=dict(encoder=1e-5)), "'encoder' is no part; known are visual_encoder"),
        (dict(part_lr=dict(projector="abc")), "projector_lr='abc' is out of range"),
        (dict(part_lr=dict(projector=-1e-4)), "give a number above 0"),
        (dict(loraplus_lr_ratio=0), "loraplus_lr_ratio=0 is out of range"),
        (dict(visual_encoder_layer_decay=1.5), "visual_encoder_layer_decay=1.5 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            rates(vlm, **paramwise)


def test_what_xtuner_drops_is_restored():
    for settings, rewritten, constructor in (
        ({"paramwise_cfg": {"norm_decay_mult": 0.0}}, {}, "GroupedOptimWrapperConstructor"),
        ({}, {}, None),
        ({}, {"paramwise_cfg": {}, "constructor": "Mine"}, "Mine"),
    ):
        cfg = Config(dict(optim_wrapper=dict(optimizer=dict(lr=0.1), **settings)))
        keep_grouping(cfg)
        settle_grouping(rewritten, cfg)
        assert rewritten.get("constructor") == constructor
        assert (rewritten.get("paramwise_cfg") or None) == settings.get("paramwise_cfg")
