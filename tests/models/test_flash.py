"""Flash in training: rows with compressed tiles, the divergence by hand, labels, and what gets a gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.models import FlashConsistencyModel, FlashRouterModel, VisionLanguageModel
from xtuner_plugins.models.flash import divergence
from xtuner_plugins.models.flash_rows import compress_row, draw_tiles
from xtuner_plugins.models.loss_head import LossHead

N = 16  # tokens of a tile


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("flash") / "base"
    build_base(toy_base, toy_base, out, projector=toy_base, max_tiles=6, dtype="float32", flash=True)
    return str(out)


def samples(model, tiles=(3, 1, 0, 2), seed=0):
    """A sample for each number of tiles: text, images, text, and an answer of three to five tokens."""
    rng, made = torch.Generator().manual_seed(seed), []
    for number, count in enumerate(tiles):
        words = torch.randint(10, 200, (9 + number % 3,), generator=rng)
        image = torch.full((count * N,), model.img_context_token_id)
        ids = torch.cat([words[:2], image, words[2:]])
        labels = torch.full_like(ids, -100)
        labels[-3 - number % 3 :] = ids[-3 - number % 3 :]
        pixels = torch.randint(0, 256, (count, 3, 112, 112), generator=rng, dtype=torch.uint8)
        made.append({"input_ids": ids, "labels": labels, "tiles": pixels, "num_tiles": count, "source": f"d:{number}"})
    return made


def lora(base, **settings):
    torch.manual_seed(0)
    adapters = dict(type=LoraConfig, r=4, lora_alpha=8)
    settings = {"freeze_projector": True, "llm_lora": adapters, "gradient_checkpointing": False, **settings}
    model = FlashConsistencyModel(base, dtype="float32", **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def read(model, ids, features):
    """Hidden states of one sample whose image tokens have these features, by the LLM alone."""
    embeds = model.model.get_input_embeddings()(ids)
    embeds[ids == model.img_context_token_id] = features
    return model.model.language_model.model(inputs_embeds=embeds[None]).last_hidden_state[0]


def by_hand(model, sample):
    """KL at each answer token of one sample, policy and reference computed apart; and the policy's cross entropy."""
    pixels, ids = model.data_preprocessor.normalize(sample["tiles"]), sample["input_ids"]
    compressed = draw_tiles([sample["source"]], [sample["num_tiles"]], 0)
    patches, network = model.model.encode_tiles(pixels), model.model
    parts = [
        network.project_compressed(p[None])[0] if few else network.project(p[None])[0]
        for p, few in zip(patches, compressed, strict=True)
    ]
    none = torch.zeros(0, 64)
    keep = torch.ones_like(ids, dtype=torch.bool)
    for number, few in enumerate(compressed):
        keep[2 + number * N + N // 4 : 2 + (number + 1) * N] = not few
    hidden = read(model, ids[keep], torch.cat([none, *parts]))
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(False)
    whole = read(model, ids, torch.cat([none, *network.project(patches)]))
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(True)
    answer = int((sample["labels"] >= 0).sum())
    head = network.language_model.lm_head.weight
    own, reference = (h[-answer - 1 : -1] @ head.T for h in (hidden, whole))
    p, q = reference.softmax(-1), own.softmax(-1)
    return (p * (p / q).log()).sum(-1), -q.log().gather(1, ids[-answer:, None])[:, 0]


@pytest.mark.parametrize("collated", [collate, collate_packed])
def test_the_loss_is_the_mean_divergence_from_the_reference_by_hand(base, collated):
    model = lora(base).eval()
    batch = samples(model)
    found = model(**model.data_preprocessor(collated(batch), True))
    with torch.no_grad():
        rows = [by_hand(model, sample) for sample in batch]
    expected = torch.cat([kl for kl, _ in rows])
    assert expected.mean() > 0.01 and expected[rows[0][0].numel() + rows[1][0].numel() :].min() > 0
    assert abs(found["loss"] - expected.mean()) < 1e-6
    own = torch.stack([each.sum() for _, each in rows])
    assert (found["sample_losses"][:4] - own).abs().max() < 1e-5
    few = int(draw_tiles([s["source"] for s in batch], [3, 1, 0, 2], 0).sum())
    assert 0 < few < 6 and found["metrics"][2:].tolist() == [6 * N - 12 * few, 6 * N]


def test_weights_and_mean_weight_count_as_in_other_training(base):
    model = lora(base).eval()
    batch = samples(model, (3, 1, 2))
    batch = [{**sample, "loss_weight": weight} for sample, weight in zip(batch, (0.5, 2.0, 1.0), strict=True)]
    together = model(**model.data_preprocessor(collate(batch), True))["loss"]
    weights = [sample["loss_weight"] * int((sample["labels"] >= 0).sum()) for sample in batch]
    mean = torch.tensor(sum(weights))
    apart = sum(model(**model.data_preprocessor(collate([s]), True), mean_weight=mean)["loss"] for s in batch)
    assert abs(together - apart) < 1e-6


def test_adapters_and_mlp2_get_the_gradient_and_the_reference_is_the_base(base):
    model = lora(base, gradient_checkpointing=True).train()
    batch = collate(samples(model))
    torch.manual_seed(0)
    outputs = model(**model.data_preprocessor(batch, True))
    outputs["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in moved} == {"mlp2", "language_model"}
    assert all("lora_" in name for name in moved if "language" in name)
    text = collate(samples(model, (0, 0)))  # without an image the projectors run, too
    outputs = model(**model.data_preprocessor(text, True))
    assert outputs["loss"] > 0
    outputs["loss"].backward()


def test_a_reference_of_what_trains_whole_is_kept(base):
    whole = FlashConsistencyModel(base, freeze_llm=False, dtype="float32", gradient_checkpointing=False).eval()
    batch = collate(samples(whole, (2, 1)))
    before = whole(**whole.data_preprocessor(batch, True))["loss"].item()
    with torch.no_grad():
        for part in (whole.model.mlp1, whole.model.language_model):
            for parameter in part.parameters():
                parameter.mul_(1.01)
        moved = whole(**whole.data_preprocessor(batch, True))["loss"].item()
        whole._reference._copies.clear()  # then the model is compared with itself
        itself = whole(**whole.data_preprocessor(batch, True))["loss"].item()
    assert len({round(value, 4) for value in (before, moved, itself)}) == 3


def test_the_divergence_in_chunks_and_its_gradient(monkeypatch):
    torch.manual_seed(0)
    hidden, expected = torch.randn(11, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    head, weight, targets = nn.Linear(8, 30, bias=False).double(), torch.randn(30, 8).double(), torch.arange(11)
    LossHead.take_over(head)
    gradients = []
    for rows in (1, 4, 100):
        monkeypatch.setattr("xtuner_plugins.models.flash.softmax_rows", lambda words, rows=rows: 2 * rows)
        own = hidden.clone().requires_grad_()
        kl, each = divergence(own, head, expected, weight, targets)
        gradients += torch.autograd.grad(kl.sum(), [own, head.weight])
        p, q = (expected @ weight.T).softmax(-1), (hidden @ head.weight.T).softmax(-1)
        assert (kl - (p * (p / q).log()).sum(-1)).abs().max() < 1e-5  # softmax in float32
        assert (each - F.cross_entropy(hidden @ head.weight.T, targets, reduction="none")).abs().max() < 1e-5
        assert not each.requires_grad
        assert (gradients[-2] - (q - p) @ head.weight).abs().max() < 1e-5
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(gradients[2:], gradients, strict=False))


def test_rows_are_shorter_by_what_the_seed_draws(base):
    model = lora(base)
    made = samples(model, (3, 1, 0, 5))
    sources = [sample["source"] for sample in made]
    drawn = draw_tiles(sources, [3, 1, 0, 5], 0)
    assert drawn.equal(torch.cat([draw_tiles([s], [t], 0) for s, t in zip(sources, (3, 1, 0, 5), strict=True)]))
    assert 0.45 < draw_tiles(["a:1"], [2000], 3).float().mean() < 0.55
    assert not draw_tiles(["a:1"], [20], 3).equal(draw_tiles(["a:1"], [20], 4))
    row, short = (model.data_preprocessor(collate(made), True)[key] for key in ("row", "shorter"))
    (short,) = short
    assert short.input_ids.shape[1] == row.input_ids.shape[1] - 12 * int(drawn.sum())
    assert row.input_ids[0, row.predicting].equal(short.input_ids[0, short.predicting])
    for start, end in zip(short.segments.bounds, short.segments.bounds[1:], strict=False):
        assert short.position_ids[0, start:end].equal(torch.arange(end - start))
    assert compress_row(row, torch.zeros(9, dtype=torch.bool), N).input_ids.equal(row.input_ids)
    assert short.rates.few.tolist() == drawn.nonzero().flatten().tolist()
    assert [len(p) for p in short.rates[2:]] == [4 * int(drawn.sum()), N * int((~drawn).sum())]


def loss_with(model, sample, compressed):
    """Mean cross entropy of one sample's answer with these tiles compressed."""
    row = model.data_preprocessor(collate([sample]))["row"]
    short = compress_row(row, torch.tensor(compressed, dtype=torch.bool), N)
    with torch.no_grad():
        return model._losses(short, model._encode(model.data_preprocessor.normalize(sample["tiles"]))).mean().item()


@pytest.mark.parametrize("exact", [False, True])
def test_labels_say_where_compressing_costs_least(base, exact):
    MessageHub.get_current_instance().runtime_info.clear()
    model = FlashRouterModel(base, exact_labels=exact, percentile=0.5, dtype="float32").eval()
    batch, tiles = samples(model, (3, 1, 0, 2)), (3, 1, 0, 2)
    outputs = model(**model.data_preprocessor(collate(batch), True))
    cheap, ratios = [], []
    for sample, count in zip(batch, tiles, strict=True):
        whole = loss_with(model, sample, [0] * count)
        cheap += [loss_with(model, sample, [1] * count) / whole] * count
        ratios += [loss_with(model, sample, [i == t for i in range(count)]) / whole for t in range(count)]
    used = ratios if exact else cheap
    limit, limits = sorted(used), sorted(cheap)
    labels = [int(r >= (limit[2] + limit[3]) / 2) for r in used]
    others = [int(r >= (limits[2] + limits[3]) / 2) for r in cheap]
    pixels = model.data_preprocessor.normalize(torch.cat([sample["tiles"] for sample in batch]))
    logits = model.model.route(model._encode(pixels))
    loss, start = 0.0, 0
    answers = [int((sample["labels"] >= 0).sum()) for sample in batch]
    for count, answer in zip(tiles, answers, strict=True):
        if count:
            own = F.cross_entropy(logits[start : start + count], torch.tensor(labels[start : start + count]))
            loss, start = loss + own * answer / sum(answers), start + count
    assert abs(outputs["loss"] - loss) < 1e-6
    right = sum(int(a) == b for a, b in zip(logits.argmax(-1), labels, strict=True))
    agreeing = sum(a == b for a, b in zip(labels, others, strict=True))
    assert outputs["metrics"].tolist() == [6, labels.count(0), right, agreeing]


def test_the_router_alone_gets_a_gradient_and_remembers_ratios(base):
    hub = MessageHub.get_current_instance()
    hub.runtime_info.clear()
    model = FlashRouterModel(base, window=8, dtype="float32").train()
    for seed in range(2):
        outputs = model(**model.data_preprocessor(collate(samples(model, seed=seed)), True))
    outputs["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    named = {name for name, p in model.named_parameters() if p.requires_grad}
    # The bias of keys adds the same to all scores of a query, so its gradient is nil but for rounding.
    assert moved == named and {name.split(".")[1] for name in named} == {"pooling_before_gating", "gating"}
    assert not any(f".{unused}{number}" in name for name in named for unused in ("attn", "norm") for number in (3, 4))
    assert all(p.grad is None for name, p in model.named_parameters() if name not in named)
    assert len(hub.get_info("flash_ratios_cheap")) == 8
    assert set(model.state_dict()) == named
    text = model(**model.data_preprocessor(collate(samples(model, (0, 0))), True))
    assert text["loss"] == 0 and text["loss"].requires_grad and math.isfinite(text["loss"])


def test_what_does_not_fit_is_refused(base, toy_base):
    for make, words in (
        (lambda: FlashConsistencyModel(str(toy_base)), "is no Flash model: tools/build_base_model.py"),
        (lambda: FlashRouterModel(str(toy_base)), "is no Flash model: tools/build_base_model.py"),
        (lambda: FlashRouterModel(base, freeze_llm=False), "trains the router alone, but language_model"),
        (lambda: FlashRouterModel(base, percentile=1.0), "flash_percentile=1.0 is out of range"),
        (lambda: FlashRouterModel(base, window=0), "flash_window=0 is out of range"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_other_training_leaves_the_flash_parts_alone(base):
    model = VisionLanguageModel(base, dtype="float32")
    assert not any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("model.mlp1"))
    assert {"mlp2", "gating", "pooling_before_gating"} < model.parts().keys()
