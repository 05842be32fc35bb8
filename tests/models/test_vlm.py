"""The training model against the hub's own forward, and its promises: frozen, counted, safe without images."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from xtuner_plugins.models import TilePreprocessor

from .batches import LORA, WHOLE, backward, build, learn, make_batch, make_samples, pack, run


def test_losses_are_those_of_the_shipped_forward(toy_base):
    """Of each sample and of all, padded or packed; text doesn't depend on the tile that stands in for images."""
    model = build(toy_base).eval()
    for tiles_of in ((2, 0, 1), (0,)):
        batch, alone = make_batch(model, tiles_of), []
        for sample in make_samples(model, tiles_of):
            pixels = model.data_preprocessor.normalize(sample["tiles"]) if sample["num_tiles"] else None
            words = {name: sample[name][None] for name in ("input_ids", "labels")}
            alone.append(5 * model.model(pixel_values=pixels, **words).loss.item())  # the mean over five labels
        for form in (dict, pack):
            losses = torch.tensor(alone + [0] * (form is pack), dtype=torch.float64)
            expected = {"loss": (losses.sum() / 5 / len(alone)).float(), "sample_losses": losses}
            expected |= {"num_supervised": torch.tensor(5 * len(alone)), "num_tiles": torch.tensor(sum(tiles_of))}
            # The same float32 products, summed over other positions
            assert_close(run(model, form(batch)), expected, rtol=3e-7, atol=0)
    with pytest.raises(ValueError, match="the mode 'loss' alone, not 'predict'"):
        model(**model.data_preprocessor(batch), mode="predict")


def test_packed_and_filled_rows_have_the_same_loss_and_gradients(toy_base, monkeypatch):
    """Filled up to a multiple of tokens as on CUDA. Samples that see each other would show in the loss."""
    for trains in (WHOLE, dict(llm_lora=LORA)):
        model = build(toy_base, **trains).train()
        batch = make_batch(model, tiles_of=(2, 0, 1, 3))
        packed, (loss, expected) = pack(batch), backward(model, batch)
        assert_close(backward(model, packed), (loss, expected), atol=1e-5, rtol=0)
        one = {"cu_seqlens": packed["cu_seqlens"][[0, -1]], "num_tiles": packed["num_tiles"].sum()[None]}
        assert abs(run(model, {**packed, **one})["loss"] - loss) > 1e-3
        with monkeypatch.context() as patch:
            patch.setattr(TilePreprocessor, "device", torch.device("cuda"))
            patch.setattr(TilePreprocessor, "cast_data", lambda preprocessor, data: data)
            patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
            filled_loss, found = backward(model, batch)
            lengths = [model.data_preprocessor(each)["row"].input_ids.shape[1] for each in (batch, packed)]
        assert lengths == [384, 384] and model.data_preprocessor(batch)["row"].input_ids.shape[1] == 342
        # Matrix products of other lengths sum float32 in another order.
        assert_close(filled_loss, loss, rtol=1e-6, atol=0)
        assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_autocast_follows_the_dtype_of_what_trains(toy_base):
    """DeepSpeed changes it after the model is built."""
    model = build(toy_base, dtype="bfloat16", freeze_llm=False)
    assert run(model, make_batch(model))["loss"].dtype == torch.float32
    held = {(p.dtype, p.requires_grad) for p in model.parameters()}
    assert held == {(torch.float32, True), (torch.bfloat16, False)}
    with model.computing(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
    with model.bfloat16().computing(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def test_what_trains_has_a_gradient_with_images_and_without(toy_base):
    """By default the projector alone. Whatever remained silent would make DDP wait; a frozen encoder keeps nothing."""
    for trains, tiles_of in itertools.product(({}, WHOLE), ((2, 0, 1), (0, 0))):
        model, outputs = build(toy_base, **trains).train(), []
        model.model.vision_model.encoder.layers[0].register_forward_hook(lambda *args, to=outputs: to.append(args[-1]))
        _, gradients = backward(model, make_batch(model, tiles_of))
        assert gradients.keys() == model.state_dict().keys()
        assert bool(trains) or all(name.startswith("model.mlp1.") for name in gradients)
        assert [output.requires_grad for output in outputs] == [bool(trains)]
        assert (model.model.vision_model.training, model.model.mlp1.training) == (bool(trains), True)
        if not trains:  # a frozen LLM has no dropout, but blocks that are recomputed
            modules = model.model.language_model.named_modules()
            assert [name for name, module in modules if module.training] == ["model.layers.0", "model.layers.1"]
        assert not any(module.training for module in model.eval().modules())
        assert any(each.any() for name, each in gradients.items() if "mlp1" in name) == any(tiles_of)


@pytest.mark.gpu
def test_on_a_gpu(toy_base, monkeypatch):
    """The loss of the CPU in float32; in bfloat16 beside float32 masters, and with packed weights, it falls."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    on_cpu, on_gpu = build(toy_base).eval(), build(toy_base).eval().cuda()
    batch = make_batch(on_cpu)
    assert_close(run(on_gpu, batch)["loss"].cpu(), run(on_cpu, batch)["loss"], atol=1e-5, rtol=0)
    for quantization in (None, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")):
        model = build(toy_base, dtype="auto", llm_lora=LORA | dict(r=8), llm_quantization=quantization).cuda()
        losses = learn(model, batch, 20, torch.optim.AdamW, lr=1e-3)
        assert model.dtype == torch.bfloat16 and losses[-1] < 0.8 * losses[0]
