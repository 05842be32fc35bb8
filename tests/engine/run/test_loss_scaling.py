"""float16: the loss is scaled, and an overflow repeats the step; a killed run stands in test_going_on."""

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from tests.models.batches import make_batch
from xtuner_plugins.engine.run.loss_scaling import LossScalingOptimWrapper, scaled_wrapper, settle_deepspeed_dtype
from xtuner_plugins.engine.run.steps import NonFiniteError, run_step
from xtuner_plugins.models import VisionLanguageModel

from .test_going_on import require_equal


@pytest.fixture
def model(toy_base):
    return VisionLanguageModel(base=str(toy_base), dtype="float16").train()


def wrapped(model, scale=None, **settings):
    """The wrapper of a model, with a scale to start from."""
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapper = LossScalingOptimWrapper(torch.optim.AdamW(trained, lr=1e-3), **settings)
    if scale is not None:
        wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    return wrapper


def trained_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("clip", [None, dict(max_norm=1.0), dict(type="value", clip_value=1e-4)])
def test_a_scale_changes_no_update(toy_base, clip):
    """Powers of two scale float32 gradients exactly; float32 takes the plain wrapper for comparison."""
    found = []
    for cls in (OptimWrapper, LossScalingOptimWrapper):
        torch.manual_seed(0)
        model = VisionLanguageModel(base=str(toy_base), dtype="float32").train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        outputs = run_step(model, cls(optimizer, clip_grad=clip and dict(clip)), [make_batch(model)])
        found.append((trained_weights(model), outputs))
    assert found[1][1].pop("loss_scale") == 65536 and found[1][1].pop("overflows") == 0
    assert found[0][1] == found[1][1]
    require_equal(*(weights for weights, _ in found))


def test_an_overflow_repeats_the_step_at_a_lower_scale(model):
    before, batch = trained_weights(model), make_batch(model)
    with_overflow = run_step(model, wrapper := wrapped(model, 2.0**40), [batch])
    assert with_overflow["overflows"] > 0
    assert with_overflow["loss_scale"] == 2.0 ** (40 - with_overflow["overflows"])
    after = trained_weights(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in before:
                p.copy_(before[name])
    fitting = run_step(model, wrapped(model, with_overflow["loss_scale"]), [batch])
    assert fitting["overflows"] == 0 and fitting["grad_norm"] == with_overflow["grad_norm"]
    require_equal(trained_weights(model), after)
    run_step(model, wrapper, [batch])
    assert wrapper.loss_scaler.get_scale() == 2 * with_overflow["loss_scale"]  # two updates in a row


def test_an_overflow_at_scale_one_names_the_samples(model):
    batch = make_batch(model)
    weight = model.model.mlp1[1].weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = trained_weights(model)
    with pytest.raises(NonFiniteError, match=r"the gradient norm is \w+ \(loss .*from the samples data.jsonl:1"):
        run_step(model, wrapper := wrapped(model, 8.0), [batch])
    assert wrapper.loss_scaler.get_scale() == 0.5  # 8, 4, 2, 1 were tried
    require_equal(trained_weights(model), before)


def test_state_of_another_dtype(model):
    wrapper = wrapped(model)
    plain = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3))
    wrapper.load_state_dict(plain.state_dict())
    assert wrapper.loss_scaler.get_scale() == 65536
    other = wrapped(model, 4.0)
    wrapper.load_state_dict(other.state_dict())
    assert wrapper.loss_scaler.get_scale() == 4.0


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
        settled = settle_deepspeed_dtype(auto, dtype)
        assert {name: settled[name].pop("enabled") for name in right} == right
        assert settled == dict(fp16=dict(initial_scale_power=16), bf16={})
        for name, value in right.items():
            assert settle_deepspeed_dtype({name: {"enabled": value}}, dtype)[name] == {"enabled": value}
            with pytest.raises(ValueError, match=f"sets {name}.enabled={not value}, but .* in {str(dtype)[6:]} "):
                settle_deepspeed_dtype({**auto, name: dict(enabled=not value)}, dtype)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: None)
    with pytest.raises(ValueError, match="leave out --deepspeed"):
        settle_deepspeed_dtype(auto, torch.float16)
