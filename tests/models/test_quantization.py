"""Loading straight into 4 bits: the model is that of the packed weights, and its linear layers never exist unpacked."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from tests.weights.training import chat_inputs, logits
from xtuner_plugins.families import llm_family
from xtuner_plugins.models.trainable import build_quantization_config, linear_quantizer
from xtuner_plugins.weights.loader import load_model

from .batches import LORA, backward, build, make_batch, run

SETTINGS = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def load(base, **options):
    model = load_model(base, dtype=torch.float32, **options)
    model.img_context_token_id = 508
    return model


def test_loaded_into_4_bits(toy_base, monkeypatch):
    for double in (True, False):
        plain, unpacked = load(toy_base), []
        targets = llm_family(plain.config.llm_config.to_dict()).lora_targets
        settings = build_quantization_config({**SETTINGS, "bnb_4bit_use_double_quant": double}, "llm")
        quantize = linear_quantizer("language_model", targets, settings, torch.float32)

        def watched(model, name, quantize=quantize, unpacked=unpacked, targets=targets):
            quantize(model, name)
            layers = [m for n, m in model.language_model.named_modules() if n.endswith(targets)]
            unpacked.append(sum(type(m) is nn.Linear and not m.weight.is_meta for m in layers))

        packed = load(toy_base, filled=watched)
        names = [n for n, m in packed.named_modules() if isinstance(m, bnb.nn.Linear4bit)]
        assert max(unpacked) == 0 and len(names) == len(targets) * plain.config.llm_config.num_hidden_layers
        assert all(n.startswith("language_model.") for n in names)
        inputs = chat_inputs(plain)
        exact, found = logits(plain, inputs), logits(packed, inputs)
        for name in names:  # the plain model, with the numbers that 4 bits can hold
            weight = plain.get_submodule(name).weight
            values, state = bnb.functional.quantize_4bit(weight.data, quant_type="nf4", compress_statistics=double)
            weight.data = bnb.functional.dequantize_4bit(values, state)
        # float32 products of the same numbers, summed in another order
        torch.testing.assert_close(found, logits(plain, inputs), rtol=0, atol=1e-5)
        assert (found - exact).abs().max() > 1e-3
    monkeypatch.setattr("xtuner_plugins.models.trainable.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="deepspeed_zero2"):
        linear_quantizer("language_model", targets, settings, torch.float32)


def test_qlora_trains_beside_four_bit_weights(toy_base):
    """DoRA's magnitudes start as the norms of the packed weights, so that a fresh adapter changes nothing either."""
    plain, losses = build(toy_base), []
    for is_dora in (False, True):
        model = build(toy_base, llm_quantization=SETTINGS, llm_lora=LORA | dict(use_dora=is_dora)).train()
        layer = model.model.language_model.model.layers[0].self_attn.q_proj.base_layer
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 64 * 64 // 2
        assert model.model.language_model.lm_head.weight.dtype == torch.float32
        loss, gradients = backward(model, make_batch(model))
        assert gradients.keys() == set(model.state_dict())
        magnitudes = [gradient for name, gradient in gradients.items() if "magnitude" in name]
        assert bool(magnitudes) == is_dora and all(gradient.abs().max() > 0 for gradient in magnitudes)
        model.init_weights()  # the runner calls it before it trains; 4-bit weights have no mean
        # A validation in between changes nothing: on some CPUs bitsandbytes would repack the weights then.
        packed = layer.weight.clone()
        with torch.no_grad():
            run(model.eval(), make_batch(model))
        assert torch.equal(layer.weight, packed) and backward(model.train(), make_batch(model))[0] == loss
        losses.append(loss.item())
    # 4 bits cost accuracy, not sense: a random LLM's loss moves by a few percent.
    exact = run(plain, make_batch(plain))["loss"].item()
    assert 0 < abs(losses[0] - exact) < 0.05 * exact and losses[1] == pytest.approx(losses[0], abs=1e-5)
