"""The error of a loss or gradient that isn't finite names the module where it began."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.optim import SGD

from tests.models.test_vlm import make_batch
from xtuner_plugins.engine.steps import NonFiniteError, run_step
from xtuner_plugins.models import VisionLanguageModel

LAYER = "model.language_model.model.layers.1"


@pytest.fixture(scope="module")
def built(toy_base):
    torch.manual_seed(0)
    return VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_llm=False).train()


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


def fail(model, clip=None):
    """The error of a step over three micro-batches; the second one has a sample of its own."""
    batches = [make_batch(model, tiles_of=(1,), seed=seed) for seed in range(3)]
    for number, batch in enumerate(batches):
        batch["sources"] = [f"data.jsonl:{number + 1}"]
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapper = OptimWrapper(SGD(trained, lr=1.0), clip_grad=clip and dict(max_norm=clip))
    before = [p.detach().clone() for p in trained]
    with pytest.raises(NonFiniteError) as caught:
        run_step(model, wrapper, batches)
    return caught.value, all(torch.equal(old, new) for old, new in zip(before, trained, strict=True))


def test_the_first_output_that_is_not_finite(model):
    """Not one of the many behind it, and not the whole that it is a part of."""
    model.get_submodule(f"{LAYER}.mlp.up_proj").register_forward_hook(lambda module, inputs, output: output / 0)
    error, _ = fail(model)
    assert error.culprit == f"the output of {LAYER}.mlp.up_proj"
    assert str(error).startswith(f"the loss is nan, first in {error.culprit}, from the samples data.jsonl:1, ")


def test_weights_that_are_not_finite(model):
    model.get_parameter(f"{LAYER}.mlp.up_proj.weight").data[0, 0] = torch.nan
    assert fail(model)[0].culprit == f"the weights of {LAYER}.mlp.up_proj"


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_first_gradient_that_is_not_finite(model, clip):
    """No weight was updated with it, and only the sample that has it is named."""
    calls = []

    def ruin(module, gradients, of_output):
        calls.append(module)
        return tuple(gradient * float("inf") for gradient in gradients) if len(calls) in (2, 5) else None

    model.get_submodule(f"{LAYER}.mlp").register_full_backward_hook(ruin)
    error, is_unchanged = fail(model, clip)
    assert error.culprit == f"the gradient of {LAYER}.post_attention_layernorm" and is_unchanged
    assert str(error).startswith("the gradient norm is ") and error.sources == ["data.jsonl:2"]


def test_what_does_not_happen_again_is_not_blamed(model):
    calls = []

    def once(module, inputs, output):
        calls.append(module)
        return output / 0 if len(calls) == 2 else None

    model.get_submodule(f"{LAYER}.mlp").register_forward_hook(once)
    error, _ = fail(model)
    assert error.culprit is None and str(error) == "the loss is nan, from the samples data.jsonl:2"
