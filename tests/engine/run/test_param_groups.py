"""Groups by ``paramwise_cfg``: one per set of options, no frozen parameter, also where XTuner drops the settings."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from torch import nn
from torch.optim import AdamW

from tests.models.batches import LORA, build
from xtuner_plugins.engine.hooks.run_contract import describe_optimizer
from xtuner_plugins.engine.run.param_groups import (
    GroupedOptimWrapperConstructor,
    build_adamw,
    keep_grouping,
    settle_grouping,
)

LR, DECAY = 1e-3, 0.1
OPTIMIZER = dict(type=AdamW, lr=LR, weight_decay=DECAY)
PART_LR = {"visual_encoder": 1e-5, "projector": 1e-4, "lora": 3e-5, "llm": None}
IN_MODEL = {"vision_model": 1e-5, "mlp1": 1e-4, "language_model": 3e-5}


RULES = [
    ({}, lambda name, dims: (LR, DECAY)),
    ({"part_lr": PART_LR}, lambda name, dims: (IN_MODEL[name.split(".")[1]], DECAY)),
    ({"loraplus_lr_ratio": 16}, lambda name, dims: (LR * (16 if ".lora_B." in name else 1), DECAY)),
    ({"decay_norms_and_biases": False}, lambda name, dims: (LR, DECAY * (dims > 1))),
]


def test_every_trainable_parameter_has_the_options_of_its_rule(toy_base):
    """One group per set of options. The encoder trains whole, the LLM through LoRA."""
    wrapped = nn.Module()
    with torch.device("meta"):
        wrapped.module = vlm = build(toy_base, freeze_visual_encoder=False, llm_lora=LORA)
    names = {id(p): name for name, p in vlm.named_parameters() if p.requires_grad}

    def groups(**paramwise):
        cfg = ConfigDict(type="OptimWrapper", optimizer=OPTIMIZER)
        return GroupedOptimWrapperConstructor(cfg, ConfigDict(paramwise))(wrapped).optimizer.param_groups

    for rules, expected in RULES:
        held = set()
        for group in (made := groups(**rules)):
            for parameter in group["params"]:
                held.add(id(parameter))
                wanted = expected(names[id(parameter)], parameter.dim())
                assert (group["lr"], group["weight_decay"]) == pytest.approx(wanted), rules
        assert held == names.keys()
        assert len({(group["lr"], group["weight_decay"]) for group in made}) == len(made)
    for paramwise, message in (
        ({"part_lr": {"llm": 1e-5}}, "a learning rate is set for llm, but nothing of it trains"),
        ({"part_lr": {"encoder": 1e-5}}, "for encoder, but nothing of it trains; .* .parts are visual_encoder"),
        ({"custom_keys": {}}, "no rule is called custom_keys; known are decay_norms_and_biases"),
    ):
        with pytest.raises(ValueError, match=message):
            groups(**paramwise)


def test_adamw_is_fused_where_there_is_a_gpu(monkeypatch):
    """PyTorch has the kernel on a CPU, too."""
    for has_gpu, shown in ((False, "AdamW of torch"), (True, "AdamW of torch, fused")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert describe_optimizer(build_adamw([nn.Parameter(torch.zeros(1))])) == shown


def test_what_xtuner_drops_is_restored():
    named = f"{GroupedOptimWrapperConstructor.__module__}.{GroupedOptimWrapperConstructor.__qualname__}"
    undecayed, own = {"paramwise_cfg": {"norm_decay_mult": 0.0}}, {"paramwise_cfg": {"a": 1}, "constructor": "Mine"}
    for settings, rewritten, restored in (
        (undecayed, {}, {**undecayed, "constructor": "GroupedOptimWrapperConstructor"}),
        ({"constructor": GroupedOptimWrapperConstructor}, {}, {"constructor": named}),
        ({}, {}, {}),
        (undecayed, {**own}, own),
    ):
        keep_grouping(cfg := Config(dict(optim_wrapper=dict(optimizer=dict(lr=0.1), **settings))))
        settle_grouping(rewritten, cfg)
        assert rewritten == restored
