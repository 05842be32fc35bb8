"""A layer in 8 bits: the numbers that it holds, its gradient, and that it moves with its model."""

import copy
import gc
import weakref

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from xtuner_plugins.models.eight_bit import PackedLinear8bit


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(64, 48).requires_grad_(False)


def held(linear):
    """The layer with the numbers that 8 bits hold."""
    values, scales, _ = bnb.functional.int8_vectorwise_quant(linear.weight.data.half())
    unpacked = copy.deepcopy(linear)
    unpacked.weight.data = bnb.functional.int8_vectorwise_dequant(values, scales)
    return unpacked


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_output_and_gradient_are_those_of_the_numbers_it_holds(linear, threshold):
    packed, unpacked = PackedLinear8bit(linear, threshold), held(linear)
    assert packed.weight.dtype == torch.int8 and not any(p.requires_grad for p in packed.parameters())
    gradients = []
    for layer in (packed, unpacked):
        x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        gradients.append((out.detach(), x.grad))
    # float32 products of the same numbers, summed in another order
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (gradients[0][0] - linear(x)).abs().max() > 1e-4


def test_large_inputs_are_kept_out_of_8_bits(linear):
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    x[:, 3] = 100.0
    errors = [(PackedLinear8bit(linear, threshold).eval()(x) - held(linear)(x)).abs().max() for threshold in (0.0, 6.0)]
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("training", [True, False])
def test_no_input_outlives_the_forward_pass(linear, training):
    packed = PackedLinear8bit(linear, 6.0).train(training)
    x = torch.randn(5, 64, requires_grad=True)
    doubled = 2 * x
    kept = weakref.ref(doubled)
    out = packed(doubled)
    del doubled
    gc.collect()
    assert kept() is None
    out.sum().backward()
    torch.testing.assert_close(x.grad, 2 * held(linear).weight.sum(0).expand(5, -1), rtol=1e-5, atol=1e-5)


def test_it_moves_with_its_model(linear):
    model = nn.Sequential(PackedLinear8bit(linear, 6.0)).to(torch.bfloat16)
    packed = model[0]
    assert packed.state.SCB.dtype == torch.float32 and packed.weight.dtype == torch.int8
    assert packed.state.CB.data_ptr() == packed.weight.data_ptr()
    model._apply(torch.clone)  # as a move: other storage
    assert packed.state.CB.data_ptr() == packed.weight.data_ptr()
    torch.testing.assert_close(model(x := torch.randn(2, 64)), held(linear)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_it_moves_to_a_gpu(linear):
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    expected = held(linear)(x)
    model = nn.Sequential(PackedLinear8bit(linear, 6.0)).cuda()
    x = x.cuda().half().requires_grad_()
    out = model(x)
    # the input is rounded to 1/254 of its row's largest value
    assert (out.float().cpu() - expected).norm() < 0.02 * expected.norm()
    out.sum().backward()
    gradient = held(linear.cpu().float()).weight.sum(0)
    assert (x.grad[0].float().cpu() - gradient).norm() < 0.01 * gradient.norm()
