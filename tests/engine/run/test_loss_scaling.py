"""float16: the loss is scaled, and an overflow repeats the step; a killed run stands in test_going_on."""

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from tests.models.batches import build, make_batch
from xtuner_plugins.engine.run.loss_scaling import LossScalingOptimWrapper, scaled_wrapper, settle_deepspeed_dtype
from xtuner_plugins.engine.run.steps import NonFiniteError, run_step

from ..parallel_case import require_equal


def stepped(base, scale=None, kind=LossScalingOptimWrapper, dtype="float16", spoil=None, **settings):
    """(what the first step logs, the trained weights, the wrapper) with a scale to start from."""
    model = build(base, dtype=dtype).train()
    wrapper = kind(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3), **settings)
    if scale:
        wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
    if spoil:
        model.model.mlp1[1].weight.register_hook(spoil)
    logged = run_step(model, wrapper, [make_batch(model)])
    return logged, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, wrapper


def test_an_overflow_repeats_the_step_at_a_lower_scale(toy_base):
    """An update lets it grow again; a checkpoint keeps it, and one of another dtype has none."""
    logged, updated, wrapper = stepped(toy_base, 2.0**40)
    scale = logged["loss_scale"]
    assert logged["overflows"] > 0 and scale == 2.0 ** (40 - logged["overflows"])
    fitting, expected, _ = stepped(toy_base, scale)  # powers of two scale gradients exactly
    assert fitting["overflows"] == 0 and fitting["grad_norm"] == logged["grad_norm"]
    require_equal(updated, expected)
    plain, other = OptimWrapper(wrapper.optimizer), LossScalingOptimWrapper(wrapper.optimizer)
    for saved, found in ((plain, 65536), (wrapper, 2 * scale)):
        other.load_state_dict(saved.state_dict())
        assert other.loss_scaler.get_scale() == found


def test_an_overflow_at_scale_one_names_the_samples(toy_base, monkeypatch):
    tried = []
    with pytest.raises(NonFiniteError, match=r"the gradient norm is \w+ \(loss .*from the samples data.jsonl:1"):
        stepped(toy_base, 8.0, spoil=lambda gradient: tried.append(1) or gradient * float("inf"))
    assert len(tried) == 4  # 8, 4, 2, 1


def test_float16_takes_the_scaling_wrapper():
    for kind in (OptimWrapper, "OptimWrapper", LossScalingOptimWrapper):
        assert scaled_wrapper(dict(type=kind), torch.float16)["type"] is LossScalingOptimWrapper
        assert scaled_wrapper(dict(type=kind), torch.bfloat16)["type"] is kind
    for kind in (AmpOptimWrapper, "AmpOptimWrapper"):
        with pytest.raises(ValueError, match="set type=OptimWrapper in place of AmpOptimWrapper"):
            scaled_wrapper(dict(type=kind), torch.float16)


def test_deepspeed_takes_the_dtype_of_the_model(monkeypatch):
    auto = dict(fp16=dict(enabled="auto", initial_scale_power=16), bf16=dict(enabled="auto"))
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)  # many CPUs have none
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        right = {"fp16": dtype == torch.float16, "bf16": dtype == torch.bfloat16}
        own = dict(fp16=dict(enabled=right["fp16"], initial_scale_power=16), bf16=dict(enabled=right["bf16"]))
        assert settle_deepspeed_dtype(auto, dtype) == settle_deepspeed_dtype(own, dtype) == own
        for name, value in right.items():
            with pytest.raises(ValueError, match=f"sets {name}.enabled={not value}, but .* in {str(dtype)[6:]} "):
                settle_deepspeed_dtype({**auto, name: dict(enabled=not value)}, dtype)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: None)
    with pytest.raises(ValueError, match="leave out --deepspeed"):
        settle_deepspeed_dtype(auto, torch.float16)
