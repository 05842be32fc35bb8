"""The training model against the hub's own forward, and its promises: frozen, counted, safe without images."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xtuner_plugins.models import preprocessor
from xtuner_plugins.models.rows import fill_row

from .batches import LORA, WHOLE, assert_same, backward, build, kept_bytes, make_batch, pack, run


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
    with pytest.raises(ValueError, match="modes 'loss' and 'tensor', not 'predict'"):
        model(**model.data_preprocessor(batch), mode="predict")


def test_the_loss_of_each_sample_is_its_own(toy_base):
    """The sums add up to the loss, and each is the one of a batch of this sample alone; padding has none."""
    model = build(toy_base).eval()
    batch = make_batch(model)
    for form in (dict, pack):
        together = run(model, form(batch))
        assert together["sample_losses"].dtype == torch.float64 and together["num_tiles"] == 3
        tiles = batch["tiles"].split(batch["num_tiles"].tolist())
        for row, total in enumerate(together["sample_losses"][:3].tolist()):
            alone = {key: value[row : row + 1] for key, value in batch.items()} | {"tiles": tiles[row]}
            outputs = run(model, alone)
            assert total == pytest.approx(float(outputs["loss"] * outputs["num_supervised"]), rel=1e-5)
        assert together["sample_losses"][3:].tolist() in ([], [0.0])
        mean = together["sample_losses"].sum() / together["num_supervised"]
        assert float(together["loss"]) == pytest.approx(float(mean), rel=1e-6)


def test_packed_and_filled_rows_have_the_same_loss_and_gradients(toy_base):
    """Filled up to a multiple of tokens as on CUDA. Samples that see each other would show in the loss."""
    for trains in (WHOLE, dict(llm_lora=LORA)):
        model = build(toy_base, **trains).train()
        batch = make_batch(model, tiles_of=(2, 0, 1, 3))
        packed, (loss, expected) = pack(batch), backward(model, batch)
        packed_loss, found = backward(model, packed)
        torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=0)
        assert_same(found, expected, atol=1e-5, rtol=0)
        inputs = model.data_preprocessor(batch)
        filled = fill_row(inputs["row"], 128)
        assert inputs["row"].input_ids.shape[1] % 128 and filled.input_ids.shape[1] % 128 == 0
        model.zero_grad()
        filled_loss = model(filled, inputs["pixel_values"])["loss"]
        filled_loss.backward()
        # Matrix products of other lengths sum float32 in another order.
        torch.testing.assert_close(filled_loss.detach(), loss, rtol=1e-6, atol=0)
        assert_same({name: dict(model.named_parameters())[name].grad for name in found}, expected, rtol=1e-5, atol=1e-7)
        one = {"cu_seqlens": packed["cu_seqlens"][[0, -1]], "num_tiles": packed["num_tiles"].sum()[None]}
        assert abs(run(model, {**packed, **one})["loss"] - loss) > 1e-3


def test_rows_are_filled_on_cuda_alone(toy_base, monkeypatch):
    filled, model = [], build(toy_base)
    monkeypatch.setattr(preprocessor, "fill_row", lambda row, multiple: filled.append(multiple) or row)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    model.data_preprocessor(make_batch(model))
    assert filled == []
    monkeypatch.setattr(preprocessor.TilePreprocessor, "device", torch.device("cuda"))
    monkeypatch.setattr(preprocessor.TilePreprocessor, "cast_data", lambda self, data: data)
    model.data_preprocessor(make_batch(model))
    assert filled == [128]


@pytest.mark.parametrize("tiles_of", [(2, 0, 1), (0, 0)])
def test_a_step_never_asks_the_device(toy_base, tiles_of):
    """Forward and backward run on tensors without content: nothing depends on values that a device holds."""
    model = build(toy_base, freeze_llm=False).train()
    inputs = model.data_preprocessor({**make_batch(model, tiles_of), "loss_weights": torch.rand(len(tiles_of))})
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, inputs)
    with mode:
        loss = model(**fake, mode="loss", mean_weight=torch.ones(()))["loss"]
        loss.backward()
        with pytest.raises(RuntimeError):
            loss.item()  # the test would see it


def test_autocast_is_decided_once_and_again_when_dtypes_change(toy_base, monkeypatch):
    """DeepSpeed changes them after the model is built. Visiting every parameter in each step took 9 ms of an 8B."""
    model = build(toy_base, dtype="bfloat16", freeze_llm=False)
    assert run(model, make_batch(model))["loss"].dtype == torch.float32
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    visits, parameters, cpu = [], model.parameters, torch.device("cpu")
    monkeypatch.setattr(model, "parameters", lambda recurse=True: visits.append(1) or parameters(recurse))
    with model.computing(cpu):
        assert torch.is_autocast_enabled("cpu") and not visits
    with model.bfloat16().computing(cpu):
        assert not torch.is_autocast_enabled("cpu") and visits


def test_only_the_projector_trains_by_default(toy_base):
    """A frozen encoder keeps no activation."""
    model, outputs = build(toy_base), []
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"mlp1"}
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


def test_count_mismatch_names_both_counts_and_the_sample(toy_base):
    model = build(toy_base)
    batch, n = make_batch(model), model.num_image_token
    batch["input_ids"][2, 3] = 11
    with pytest.raises(ValueError, match=rf"{3 * n - 1} image tokens.*{3 * n} image features.*data.jsonl:3"):
        run(model, batch)


def test_a_frozen_llm_recomputes_its_blocks(toy_base):
    """Stage 1: a gradient passes through the frozen LLM, and what its blocks would keep is most of the memory."""
    models = [build(toy_base, gradient_checkpointing=recomputes).train() for recomputes in (True, False)]
    batch = make_batch(models[0])
    few, many = (kept_bytes(model, batch) for model in models)
    (_, found), (_, expected) = (backward(model, batch) for model in models)
    assert_same(found, expected, rtol=0, atol=0)
    # Recomputing keeps the input of each of two blocks (a hidden state of 64), keeping all of it is about ten.
    assert (many - few) / (batch["input_ids"].numel() * 2 * 64 * 4) > 8
    llm = models[0].model.language_model  # and no dropout is switched on
    assert not llm.training and not any(m.training for n, m in llm.named_modules() if n.endswith(("self_attn", "mlp")))
    for layer in llm.model.layers:
        layer.self_attn.attention_dropout = 0.9
    torch.testing.assert_close(run(models[0], batch)["loss"], run(models[0].eval(), batch)["loss"])


def test_lora_by_part(toy_base):
    """B starts at zero, so a fresh adapter changes nothing, and gets a gradient at once."""
    plain = build(toy_base)
    expected = run(plain, make_batch(plain))["loss"].detach()
    for part, prefix in (("llm", "model.language_model."), ("visual_encoder", "model.vision_model.")):
        model = build(toy_base, freeze_projector=True, **{f"{part}_lora": LORA}).train()
        names = set(model.state_dict())
        assert names and all(name.startswith(prefix) and "lora_" in name for name in names)
        loss, gradients = backward(model, make_batch(model))
        assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if "lora_B" in name)
        assert gradients.keys() == names
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
