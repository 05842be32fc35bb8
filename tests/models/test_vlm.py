"""The training model against the hub's own forward, and its promises: frozen, counted, safe without images."""

import pytest
import torch
from peft import LoraConfig

from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.rows import fill_row

LORA = dict(type=LoraConfig, r=4, lora_alpha=8)


@pytest.fixture(scope="module")
def build(toy_base):
    def make(**settings):
        torch.manual_seed(0)
        return VisionLanguageModel(base=str(toy_base), dtype="float32", **settings)

    return make


def make_batch(model, tiles_of=(2, 0, 1), length=90, seed=0):
    """A padded batch whose samples hold the given numbers of tiles; labels on the last five tokens of each."""
    generator = torch.Generator().manual_seed(seed)
    n = model.num_image_token
    input_ids = torch.randint(10, 200, (len(tiles_of), length), generator=generator)
    labels = torch.full_like(input_ids, -100)
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    for row, num_tiles in enumerate(tiles_of):
        end = length - 3 * row
        input_ids[row, 2 : 2 + n * num_tiles] = model.img_context_token_id
        labels[row, end - 5 : end] = input_ids[row, end - 5 : end]
        attention_mask[row, end:] = False
    size = model.tile_size
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": attention_mask,
        "tiles": torch.randint(0, 256, (sum(tiles_of), 3, size, size), dtype=torch.uint8, generator=generator),
        "num_tiles": torch.tensor(tiles_of),
        "sources": [f"data.jsonl:{row + 1}" for row in range(len(tiles_of))],
    }


def run(model, batch):
    return model(**model.data_preprocessor(batch), mode="loss")


def test_loss_equals_the_shipped_forward(build):
    model = build().eval()
    batch = make_batch(model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    shipped = model.model(pixel_values=model.data_preprocessor.normalize(batch["tiles"]), **inputs)
    # The same float32 products, summed over fewer positions.
    torch.testing.assert_close(run(model, batch)["loss"], shipped.loss, atol=2e-6, rtol=0)


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_loss_of_each_sample_is_its_own(build, is_packed):
    """The sums add up to the loss, and each is the one of a batch of this sample alone; padding has none."""
    from .test_attention import pack  # which imports this file

    model, form = build().eval(), pack if is_packed else dict
    batch = make_batch(model)
    together = run(model, form(batch))
    assert together["sample_losses"].dtype == torch.float64
    for row, total in enumerate(together["sample_losses"][:3].tolist()):
        first = int(batch["num_tiles"][:row].sum())
        alone = {key: value[row : row + 1] for key, value in batch.items() if key != "tiles"}
        alone["tiles"] = batch["tiles"][first : first + int(batch["num_tiles"][row])]
        outputs = run(model, alone)
        assert total == pytest.approx(float(outputs["loss"] * outputs["num_supervised"]), rel=1e-5)
    assert together["sample_losses"][3:].tolist() in ([], [0.0])
    mean = together["sample_losses"].sum() / together["num_supervised"]
    assert float(together["loss"]) == pytest.approx(float(mean), rel=1e-6)


def test_autocast_is_decided_once_and_again_when_dtypes_change(toy_base, monkeypatch):
    """DeepSpeed changes them after the model is built. Visiting every parameter in each step took 9 ms of an 8B."""
    model = VisionLanguageModel(base=str(toy_base), dtype="bfloat16", freeze_llm=False)
    run(model, make_batch(model))
    visits = []
    parameters = model.parameters
    monkeypatch.setattr(model, "parameters", lambda recurse=True: visits.append(1) or parameters(recurse))
    cpu = torch.device("cpu")
    with model.computing(cpu):
        assert torch.is_autocast_enabled("cpu") and not visits
    with model.bfloat16().computing(cpu):
        assert not torch.is_autocast_enabled("cpu") and visits


def test_only_the_projector_trains_by_default(build):
    model = build()
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"mlp1"}
    run(model.train(), make_batch(model))["loss"].backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == set(model.state_dict()) and with_gradient
    assert all(name.startswith("model.mlp1.") for name in with_gradient)


def test_frozen_encoder_keeps_no_activation(build):
    model = build().train()
    block_output = []
    model.model.vision_model.encoder.layers[0].register_forward_hook(lambda _m, _i, output: block_output.append(output))
    features = model._encode(model.data_preprocessor.normalize(make_batch(model)["tiles"]))
    assert [output.grad_fn for output in block_output] == [None] and not features.requires_grad
    assert not model.model.vision_model.training and model.model.mlp1.training


@pytest.mark.parametrize("trains", [dict(freeze_llm=False), dict(llm_lora=LORA)])
def test_a_filled_row_has_the_same_loss_and_gradients(build, monkeypatch, trains):
    """As on CUDA, where rows are filled up to a multiple of tokens."""
    results = []
    for multiple in (1, 128):
        model = build(row_multiple=multiple, **trains).train()
        inputs = model.data_preprocessor(make_batch(model))
        row = fill_row(inputs["row"], model.data_preprocessor.row_multiple)
        loss = model(row, inputs["pixel_values"])["loss"]
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((row.input_ids.shape[1], loss, gradients))
    assert results[0][0] % 128 and results[1][0] % 128 == 0
    # Matrix products of other lengths sum float32 in another order.
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-6, atol=0)
    for name, gradient in results[0][2].items():
        torch.testing.assert_close(results[1][2][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_rows_are_filled_on_cuda_alone(build, monkeypatch):
    from xtuner_plugins.models import preprocessor

    filled = []
    monkeypatch.setattr(preprocessor, "fill_row", lambda row, multiple: filled.append(multiple) or row)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    model = build()
    model.data_preprocessor(make_batch(model))
    assert filled == []
    monkeypatch.setattr(preprocessor.TilePreprocessor, "device", torch.device("cuda"))
    monkeypatch.setattr(preprocessor.TilePreprocessor, "cast_data", lambda self, data: data)
    model.data_preprocessor(make_batch(model))
    assert filled == [128]


def test_batch_without_images_reaches_every_trained_parameter(build):
    model = build(freeze_visual_encoder=False, freeze_llm=False).train()
    run(model, make_batch(model, tiles_of=(0, 0)))["loss"].backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    # The last encoder block is used, so what remains silent would make DDP wait for ever.
    assert silent == []
    assert all(p.grad.abs().max() == 0 for p in model.model.mlp1.parameters())


def test_text_does_not_depend_on_the_stand_in_tile(build):
    model = build().eval()
    batch = make_batch(model, tiles_of=(0,))
    loss = run(model, batch)["loss"]
    text = model.model.language_model(
        input_ids=batch["input_ids"], labels=batch["labels"], attention_mask=batch["attention_mask"]
    )
    torch.testing.assert_close(loss, text.loss, atol=2e-6, rtol=0)


def test_count_mismatch_names_both_counts_and_the_sample(build):
    model = build()
    batch = make_batch(model)
    batch["input_ids"][2, 3] = 11
    n = model.num_image_token
    with pytest.raises(ValueError, match=rf"{3 * n - 1} image tokens.*{3 * n} image features.*data.jsonl:3"):
        run(model, batch)


def test_qlora_trains_beside_four_bit_weights(build):
    quantization = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = build(llm_quantization=quantization, llm_lora=LORA).train()
    layer = model.model.language_model.model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 64 * 64 // 2
    assert model.model.language_model.lm_head.weight.dtype == torch.float32
    loss = run(model, make_batch(model))["loss"]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert set(model.state_dict()) == {n for n, p in model.named_parameters() if p.requires_grad}
    model.init_weights()  # the runner calls it before it trains; 4-bit weights have no mean
    # A validation in between changes nothing: on some CPUs bitsandbytes would repack the weights then.
    packed = layer.weight.clone()
    with torch.no_grad():
        run(model.eval(), make_batch(model))
    assert torch.equal(layer.weight, packed)
    assert torch.equal(run(model.train(), make_batch(model))["loss"], loss)
    # 4 bits cost accuracy, not sense: a random LLM's loss moves by a few percent.
    plain = run(build(), make_batch(model))["loss"]
    assert 0 < abs(loss - plain) < 0.05 * plain


def kept_bytes(model, batch):
    """Bytes of activations that the graph of a loss keeps, parameters aside, and the projector's gradient."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run(model, batch)["loss"]
    total = sum(kept.values())
    loss.backward()
    return total, model.model.mlp1[1].weight.grad.clone()


def test_a_frozen_llm_recomputes_its_blocks(build):
    """Stage 1: a gradient passes through the frozen LLM, and what its blocks would keep is most of the memory."""
    model, keeping = build().train(), build(gradient_checkpointing=False).train()
    batch = make_batch(model)
    recomputing_bytes, gradient = kept_bytes(model, batch)
    keeping_bytes, expected = kept_bytes(keeping, batch)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
    tokens, layers, width = batch["input_ids"].numel(), 2, 64
    # Recomputing keeps the input of each block (one hidden state), keeping all of it is about ten.
    per_layer = (keeping_bytes - recomputing_bytes) / (tokens * layers * width * 4)
    assert per_layer > 8


def test_recomputing_switches_no_dropout_on(build):
    model = build().train()
    llm = model.model.language_model
    assert not llm.training and not any(m.training for n, m in llm.named_modules() if n.endswith(("self_attn", "mlp")))
    for layer in llm.model.layers:
        layer.self_attn.attention_dropout = 0.9
    torch.testing.assert_close(run(model, make_batch(model))["loss"], run(model.eval(), make_batch(model))["loss"])


@pytest.mark.parametrize(
    "lora_on, prefix", [("llm", "model.language_model."), ("visual_encoder", "model.vision_model.")]
)
def test_lora_by_part(build, lora_on, prefix):
    model = build(freeze_projector=True, **{f"{lora_on}_lora": LORA}).train()
    names = set(model.state_dict())
    assert names and all(name.startswith(prefix) and "lora_" in name for name in names)
    before = run(model, make_batch(model))["loss"]
    before.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)
    # B starts at zero, so a fresh adapter changes nothing.
    plain = run(build(), make_batch(model))["loss"]
    torch.testing.assert_close(before, plain, atol=1e-6, rtol=0)


def test_trainable_parts_are_float32_beside_frozen_bfloat16(toy_base):
    model = VisionLanguageModel(base=str(toy_base), dtype="bfloat16", llm_lora=LORA)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    loss = run(model.train(), make_batch(model))["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
