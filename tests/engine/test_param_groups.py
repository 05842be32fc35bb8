"""Groups by ``paramwise_cfg``: one per set of options, no frozen parameter, also where XTuner drops the settings."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from peft import LoraConfig
from torch import nn
from torch.optim import AdamW

from xtuner_plugins.engine.param_groups import (
    GroupedOptimWrapperConstructor,
    keep_grouping,
    planned_groups,
    settle_grouping,
)
from xtuner_plugins.models import VisionLanguageModel

LR, DECAY = 1e-3, 0.1


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model


def build(model, **paramwise_cfg):
    optimizer = dict(type="SGD", lr=0.1, weight_decay=0.5)
    constructor = GroupedOptimWrapperConstructor(dict(type="OptimWrapper", optimizer=optimizer), paramwise_cfg)
    return constructor(model).optimizer.param_groups


def test_one_group_per_set_of_options(model):
    groups = build(model, norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={"2.weight": dict(lr_mult=2.0)})
    found = {(group["lr"], group["weight_decay"]): {id(p) for p in group["params"]} for group in groups}
    norm = model[1]
    assert len(groups) == 2 and found == {
        (0.1, 0.0): {id(model[0].bias), id(norm.weight), id(norm.bias), id(model[2].bias)},
        (0.2, 0.5): {id(model[2].weight)},
    }


def test_frozen_parameters_are_in_no_group(model):
    held = [p for group in build(model) for p in group["params"]]
    assert len(held) == 5 and all(p.requires_grad for p in held)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_names_are_those_inside_the_wrapper(model):
    options = {"custom_keys": {"2.weight": dict(lr_mult=2.0)}}
    assert sorted(len(g["params"]) for g in build(Wrapped(model), **options)) == [1, 4]


def test_what_xtuner_drops_is_restored():
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(lr=0.1), paramwise_cfg=dict(norm_decay_mult=0.0))))
    keep_grouping(cfg)
    rewritten = dict(type="DeepSpeedOptimWrapper")
    settle_grouping(rewritten, cfg)
    assert rewritten["paramwise_cfg"] == {"norm_decay_mult": 0.0}
    assert rewritten["constructor"] == "GroupedOptimWrapperConstructor"


@pytest.mark.parametrize("own, expected", [({}, None), ({"paramwise_cfg": {}, "constructor": "Mine"}, "Mine")])
def test_without_settings_nothing_is_added(own, expected):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(lr=0.1))))
    keep_grouping(cfg)
    settle_grouping(own, cfg)
    assert own.get("constructor") == expected


@pytest.fixture(scope="module")
def vlm(toy_base):
    """Encoder and projector trained whole, the LLM through LoRA."""
    with torch.device("meta"):
        return VisionLanguageModel(
            base=str(toy_base),
            dtype="float32",
            freeze_visual_encoder=False,
            llm_lora=dict(type=LoraConfig, r=4, lora_alpha=8),
        )


def optimizer(vlm, **paramwise):
    """{name: (lr, weight decay)} as the built optimizer holds them."""
    cfg = dict(type="OptimWrapper", optimizer=dict(type=AdamW, lr=LR, weight_decay=DECAY))
    wrapper = GroupedOptimWrapperConstructor(ConfigDict(cfg), ConfigDict(paramwise))(vlm)
    names = {id(p): name for name, p in vlm.named_parameters()}
    groups = wrapper.optimizer.param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_without_rules_all_trainable_parameters_are_one_group(vlm):
    held = optimizer(vlm)
    assert set(held) == {name for name, p in vlm.named_parameters() if p.requires_grad}
    assert set(held.values()) == {(LR, DECAY)}


def test_each_part_has_its_own_rate(vlm):
    held = optimizer(vlm, part_lr=dict(visual_encoder=1e-5, projector=1e-4, lora=3e-5, llm=None))
    expected = {"model.vision_model": 1e-5, "model.mlp1": 1e-4, "model.language_model": 3e-5}
    for name, (lr, decay) in held.items():
        assert lr == pytest.approx(next(rate for start, rate in expected.items() if name.startswith(start))), name
        assert decay == DECAY


def test_b_matrices_learn_faster(vlm):
    """LoRA+: a ratio of 16, on the adapters' own rate."""
    held = optimizer(vlm, loraplus_lr_ratio=16, part_lr=dict(lora=3e-5))
    factors = {
        kind: {round(lr / 3e-5, 6) for name, (lr, _) in held.items() if kind in name} for kind in ("lora_A", "lora_B")
    }
    assert factors == {"lora_A": {1}, "lora_B": {16}}
    assert {lr for name, (lr, _) in held.items() if "lora_" not in name} == {LR}


def test_planned_rates_name_the_b_matrices(vlm):
    wrapper = dict(optimizer=dict(type=AdamW, lr=LR), paramwise_cfg=dict(loraplus_lr_ratio=4.0))
    groups = planned_groups(dict(optim_wrapper=wrapper), vlm)
    num_b = sum(p.numel() for name, p in vlm.named_parameters() if ".lora_B." in name)
    assert {lr: count for (lr, _), count in groups.items()}[4 * LR] == num_b


def test_layer_decay_falls_from_the_last_block_to_the_embeddings(vlm):
    held = optimizer(vlm, visual_encoder_layer_decay=0.5, part_lr=dict(visual_encoder=1e-4))
    blocks = len(vlm.model.vision_model.encoder.layers)
    for name, (lr, _) in held.items():
        if name.startswith("model.vision_model.encoder.layers."):
            index = int(name.split(".")[4])
            assert lr == pytest.approx(1e-4 * 0.5 ** (blocks - 1 - index)), name
        elif name.startswith("model.vision_model.embeddings"):
            assert lr == pytest.approx(1e-4 * 0.5**blocks), name
        else:
            assert lr == LR, name


def test_norms_and_biases_keep_their_size(vlm):
    held = optimizer(vlm, decay_norms_and_biases=False)
    shapes = {name: p.shape for name, p in vlm.named_parameters()}
    assert {len(shapes[name]) < 2 for name in held} == {True, False}
    for name, (_, decay) in held.items():
        assert decay == (0.0 if len(shapes[name]) < 2 else DECAY), name


@pytest.mark.parametrize(
    "paramwise, message",
    [
        (dict(part_lr=dict(llm=1e-5)), "a learning rate is set for llm, but nothing of it trains"),
        (dict(part_lr=dict(encoder=1e-5)), "'encoder' is no part; known are visual_encoder"),
        (dict(part_lr=dict(projector="abc")), "projector_lr='abc' is out of range"),
        (dict(part_lr=dict(projector=-1e-4)), "give a number above 0"),
        (dict(loraplus_lr_ratio=0), "loraplus_lr_ratio=0 is out of range"),
        (dict(visual_encoder_layer_decay=1.5), "visual_encoder_layer_decay=1.5 is out of range"),
    ],
)
def test_rules_without_effect_are_refused(vlm, paramwise, message):
    with pytest.raises(ValueError, match=message):
        optimizer(vlm, **paramwise)


def test_planned_groups_are_the_optimizers(vlm):
    rules = dict(part_lr=dict(projector=1e-4), decay_norms_and_biases=False)
    cfg = dict(optim_wrapper=dict(optimizer=dict(type=AdamW, lr=LR, weight_decay=DECAY), paramwise_cfg=rules))
    sizes = {name: p.numel() for name, p in vlm.named_parameters()}
    expected = {}
    for name, key in optimizer(vlm, **rules).items():
        expected[key] = expected.get(key, 0) + sizes[name]
    assert planned_groups(ConfigDict(cfg), vlm) == pytest.approx(expected) and len(expected) == 4
    named = f"{GroupedOptimWrapperConstructor.__module__}.{GroupedOptimWrapperConstructor.__qualname__}"
    for constructor in (GroupedOptimWrapperConstructor, "GroupedOptimWrapperConstructor", named):
        cfg["optim_wrapper"]["constructor"] = constructor
        assert planned_groups(ConfigDict(cfg), vlm) == pytest.approx(expected)
    assert planned_groups(ConfigDict(optim_wrapper=dict(constructor="DefaultOptimWrapperConstructor")), vlm) is None
