"""The training model against the hub's own forward, and its promises: frozen, counted, safe without images."""

import pytest
import torch

from xtuner_plugins.models import TilePreprocessor

from .batches import LORA, WHOLE, assert_same, backward, build, learn, make_batch, pack, run


def test_loss_equals_the_shipped_forward(toy_base):
    """And text doesn't depend on the tile that stands in for images."""
    model = build(toy_base).eval()
    for tiles_of in ((2, 0, 1), (0,)):
        batch = make_batch(model, tiles_of)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        pixels = model.data_preprocessor.normalize(batch["tiles"]) if sum(tiles_of) else None
        # The same float32 products, summed over fewer positions.
        shipped = model.model(pixel_values=pixels, **inputs).loss
        torch.testing.assert_close(run(model, batch)["loss"], shipped, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="the mode 'loss' alone, not 'predict'"):
        model(**model.data_preprocessor(batch), mode="predict")


def test_the_loss_of_each_sample_is_its_own(toy_base):
    """The sums add up to the loss, and each is the one of a batch of this sample alone; padding has none."""
    model = build(toy_base).eval()
    batch = make_batch(model)
    tiles, alone = batch["tiles"].split(batch["num_tiles"].tolist()), []
    for row in range(3):
        outputs = run(model, {name: value[row : row + 1] for name, value in batch.items()} | {"tiles": tiles[row]})
        alone.append(float(outputs["loss"] * outputs["num_supervised"]))
    for form in (dict, pack):
        together = run(model, form(batch))
        losses = together["sample_losses"]
        assert losses.dtype == torch.float64 and together["num_tiles"] == 3
        assert losses[:3].tolist() == pytest.approx(alone, rel=1e-5) and losses[3:].tolist() in ([], [0.0])
        assert float(together["loss"]) == pytest.approx(float(losses.sum() / together["num_supervised"]), rel=1e-6)


def test_packed_and_filled_rows_have_the_same_loss_and_gradients(toy_base, monkeypatch):
    """Filled up to a multiple of tokens as on CUDA. Samples that see each other would show in the loss."""
    for trains in (WHOLE, dict(llm_lora=LORA)):
        model = build(toy_base, **trains).train()
        batch = make_batch(model, tiles_of=(2, 0, 1, 3))
        packed, (loss, expected) = pack(batch), backward(model, batch)
        packed_loss, found = backward(model, packed)
        torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=0)
        assert_same(found, expected, atol=1e-5, rtol=0)
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
        torch.testing.assert_close(filled_loss, loss, rtol=1e-6, atol=0)
        assert_same(found, expected, rtol=1e-5, atol=1e-7)


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


def test_only_the_projector_trains_by_default(toy_base):
    """A frozen encoder keeps no activation."""
    model, outputs = build(toy_base), []
    model.model.vision_model.encoder.layers[0].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    _, gradients = backward(model.train(), make_batch(model))
    assert gradients.keys() == model.state_dict().keys() and all(n.startswith("model.mlp1.") for n in gradients)
    assert [output.grad_fn for output in outputs] == [None]
    assert not model.model.vision_model.training and model.model.mlp1.training


def test_batch_without_images_reaches_every_trained_parameter(toy_base):
    """Whatever remained silent would make DDP wait for ever."""
    model = build(toy_base, **WHOLE).train()
    _, gradients = backward(model, make_batch(model, tiles_of=(0, 0)))
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.abs().max() == 0 for name, gradient in gradients.items() if "mlp1" in name)


@pytest.mark.gpu
def test_on_a_gpu(toy_base, monkeypatch):
    """The loss of the CPU in float32; in bfloat16 beside float32 masters, and with packed weights, it falls."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    on_cpu, on_gpu = build(toy_base).eval(), build(toy_base).eval().cuda()
    batch = make_batch(on_cpu)
    torch.testing.assert_close(run(on_gpu, batch)["loss"].cpu(), run(on_cpu, batch)["loss"], atol=1e-5, rtol=0)
    for quantization in (None, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")):
        model = build(toy_base, dtype="auto", llm_lora=LORA | dict(r=8), llm_quantization=quantization).cuda()
        losses = learn(model, batch, 20, torch.optim.AdamW, lr=1e-3)
        assert model.dtype == torch.bfloat16 and losses[-1] < 0.8 * losses[0]
