"""Groups by ``paramwise_cfg``: one per set of options, no frozen parameter, also where XTuner drops the settings."""

import pytest
from mmengine.config import Config
from torch import nn

from xtuner_plugins.engine.param_groups import GroupedOptimWrapperConstructor, keep_grouping, settle_grouping


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
