"""Loading straight into 4 bits: the model is that of the packed weights, and its linear layers never exist unpacked."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from tests.checkpoints.training import chat_inputs, logits
from xtuner_plugins.checkpoints.loader import load_model
from xtuner_plugins.families import llm_family
from xtuner_plugins.models.quantization import _pack_8bit, build_quantization_config, linear_quantizer

SETTINGS = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def load(base, **options):
    model, report = load_model(base, dtype=torch.float32, **options)
    model.img_context_token_id = 508
    return model, report


@pytest.mark.parametrize("double", [True, False])
def test_loaded_into_4_bits(toy_base, double):
    settings = {**SETTINGS, "bnb_4bit_use_double_quant": double}
    plain, expected_report = load(toy_base)
    targets = llm_family(plain.config.llm_config.to_dict()).lora_targets
    quantize = linear_quantizer("language_model", targets, settings, torch.float32)
    unpacked = []

    def watched(model, name):
        quantize(model, name)
        layers = [m for n, m in model.language_model.named_modules() if n.rsplit(".", 1)[-1] in targets]
        unpacked.append(sum(type(m) is nn.Linear and not m.weight.is_meta for m in layers))

    packed, report = load(toy_base, filled=watched)
    assert report == expected_report
    assert max(unpacked) == 0
    names = [n for n, m in packed.named_modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(names) == len(targets) * plain.config.llm_config.num_hidden_layers
    assert all(n.startswith("language_model.") for n in names)

    inputs = chat_inputs(plain)
    exact = logits(plain, inputs)
    for name in names:  # the plain model, with the numbers that 4 bits can hold
        weight = plain.get_submodule(name).weight
        values, state = bnb.functional.quantize_4bit(weight.data, quant_type="nf4", compress_statistics=double)
        weight.data = bnb.functional.dequantize_4bit(values, state)
        packed.get_submodule(name).train()  # evaluating on a CPU, bitsandbytes multiplies in lower precision
    # float32 products of the same numbers, summed in another order
    torch.testing.assert_close(logits(packed, inputs), logits(plain, inputs), rtol=0, atol=1e-5)
    assert (logits(packed, inputs) - exact).abs().max() > 1e-3


def test_loaded_into_8_bits(toy_base):
    plain, expected_report = load(toy_base)
    targets = llm_family(plain.config.llm_config.to_dict()).lora_targets
    settings = dict(load_in_8bit=True, llm_int8_threshold=0.0)
    packed, report = load(toy_base, filled=linear_quantizer("language_model", targets, settings, torch.float32))
    assert report == expected_report
    layers = {n: m for n, m in packed.named_modules() if isinstance(m, bnb.nn.Linear8bitLt)}
    assert len(layers) == len(targets) * plain.config.llm_config.num_hidden_layers
    assert all(n.startswith("language_model.model.layers.") and m.state.threshold == 0 for n, m in layers.items())
    inputs = chat_inputs(plain)
    exact = logits(plain, inputs)
    for name, layer in layers.items():  # the plain model, with the numbers that 8 bits can hold
        plain.get_submodule(name).weight.data = bnb.functional.int8_vectorwise_dequant(layer.state.CB, layer.state.SCB)
        layer.train()  # evaluating, bitsandbytes rounds inputs to 8 bits too
    torch.testing.assert_close(logits(packed, inputs), logits(plain, inputs), rtol=0, atol=1e-5)
    assert (logits(packed, inputs) - exact).abs().max() > 1e-4


def test_casts_are_not_said_of_every_product(caplog):
    packed = _pack_8bit(nn.Linear(16, 16), build_quantization_config(dict(load_in_8bit=True)), torch.float32).eval()
    packed(torch.ones(1, 16))
    assert "inputs will be cast" not in caplog.text


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(), "set load_in_4bit=True or load_in_8bit=True"),
        (dict(load_in_4bit=True, load_in_8bit=True), "load_in_8bit"),
        (dict(load_in_8bit=True, llm_int8_skip_modules=["lm_head"]), "llm_int8_skip_modules does nothing here"),
        (dict(load_in_8bit=True, llm_int8_has_fp16_weight=True), "llm_int8_has_fp16_weight does nothing here"),
        (dict(load_in_8bit=True, bits=8), "has no setting bits"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        build_quantization_config(settings)


def test_not_under_zero3(monkeypatch):
    monkeypatch.setattr("xtuner_plugins.models.quantization.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="deepspeed_zero2"):
        linear_quantizer("language_model", ("q_proj",), SETTINGS, torch.float32)
