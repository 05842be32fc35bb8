"""float16: the loss is scaled, and an overflow repeats the step; a killed run stands in test_going_on."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper

from tests.models.batches import build, make_batch
from xtuner_plugins.engine.run import strategy
from xtuner_plugins.engine.run.loss_scaling import LossScalingOptimWrapper, scaled_wrapper, settle_deepspeed_dtype
from xtuner_plugins.engine.run.steps import NonFiniteError, run_step

from ..forked import require_equal


def stepped(base, scale, clip, spoil=None):
    """(what the first step logs, the trained weights, the wrapper) from a scale on, which grows at once."""
    model = build(base, dtype="float16").train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrapper = LossScalingOptimWrapper(torch.optim.AdamW(trained.values(), lr=1e-3), clip_grad=clip and dict(clip))
    wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
    if spoil:
        model.model.mlp1[1].weight.register_hook(spoil)
    return run_step(model, wrapper, [make_batch(model)]), trained, wrapper


def test_an_overflow_repeats_the_step_at_a_lower_scale(toy_base):
    """A fitting scale makes the same update; a checkpoint keeps it, and one of another dtype has none."""
    for clip in (None, dict(max_norm=1.0), dict(type="value", clip_value=1e-4)):
        logged, updated, wrapper = stepped(toy_base, 2.0**40, clip)
        scale = logged["loss_scale"]
        assert logged["overflows"] > 0 and scale == 2.0 ** (40 - logged["overflows"])
        fitting, expected, _ = stepped(toy_base, scale, clip)
        assert {**fitting, "overflows": logged["overflows"]} == logged
        require_equal(updated, expected)
    plain, other = OptimWrapper(wrapper.optimizer), LossScalingOptimWrapper(wrapper.optimizer)
    for saved, found in ((plain, 65536), (wrapper, 2 * scale)):
        other.load_state_dict(saved.state_dict())
        assert other.loss_scaler.get_scale() == found
    tried = []
    with pytest.raises(NonFiniteError, match=r"the gradient norm is \w+ \(loss .*from the samples data.jsonl:1"):
        stepped(toy_base, 8.0, None, lambda gradient: tried.append(1) or gradient * float("inf"))
    assert len(tried) == 4  # 8, 4, 2, 1


def test_the_dtype_of_the_model_decides():
    """About the wrapper, and DeepSpeed's settings."""
    assert scaled_wrapper(dict(type=OptimWrapper), torch.bfloat16)["type"] is OptimWrapper
    for kind in (OptimWrapper, "OptimWrapper", LossScalingOptimWrapper):
        assert scaled_wrapper(dict(type=kind), torch.float16)["type"] is LossScalingOptimWrapper
    auto = dict(fp16=dict(enabled="auto", initial_scale_power=16), bf16=dict(enabled="auto"))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        half, brain = dtype == torch.float16, dtype == torch.bfloat16
        own = dict(fp16=dict(enabled=half, initial_scale_power=16), bf16=dict(enabled=brain))
        assert settle_deepspeed_dtype(auto, dtype) == settle_deepspeed_dtype(own, dtype) == own
        with pytest.raises(ValueError, match=f"sets bf16.enabled={not brain}, but .* in {str(dtype)[6:]} "):
            settle_deepspeed_dtype({**auto, "bf16": dict(enabled=not brain)}, dtype)


def test_a_norm_that_deepspeed_asserts_on():
    """ZeRO-1 in bfloat16: a gradient of zeros has the norm 0, -1 stands for one that isn't finite."""

    def step():
        assert optimizer._global_grad_norm > 1

    for norm, expected in ((0.0, 0.0), (-1.0, math.nan)):
        optimizer = SimpleNamespace(step=step, fp32_groups_gradients_flat=[], _global_grad_norm=norm)
        strategy._keep_norms_that_are_not_finite(optimizer)
        optimizer.step()
        assert optimizer._global_grad_norm == pytest.approx(expected, nan_ok=True)
    optimizer._global_grad_norm = 1.0  # another assertion
    with pytest.raises(AssertionError):
        optimizer.step()
