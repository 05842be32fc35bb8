"""Flash in training: rows with compressed tiles, the divergence by hand, labels, and what gets a gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from peft.tuners.lora import LoraLayer
from torch import nn

from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.models import FlashConsistencyModel, FlashRouterModel, VisionLanguageModel
from xtuner_plugins.models.flash import divergence
from xtuner_plugins.models.flash_rows import compress_row, draw_tiles
from xtuner_plugins.models.loss_head import LossHead

from .batches import LORA, build

N, TILES = 16, (3, 1, 0, 2)  # tokens of a tile; tiles of the samples


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("flash") / "base"
    build_base(toy_base, toy_base, out, projector=toy_base, max_tiles=6, dtype="float32", flash=True)
    return str(out)


@pytest.fixture(autouse=True)
def _own_hub():
    MessageHub.get_current_instance().runtime_info.clear()


def samples(model, tiles=TILES, seed=0):
    """A sample for each number of tiles: text, images, text, and an answer of three to five tokens."""
    rng, made = torch.Generator().manual_seed(seed), []
    for number, count in enumerate(tiles):
        words = torch.randint(10, 200, (9 + number % 3,), generator=rng)
        ids = torch.cat([words[:2], torch.full((count * N,), model.img_context_token_id), words[2:]])
        labels = torch.full_like(ids, -100)
        labels[-3 - number % 3 :] = ids[-3 - number % 3 :]
        pixels = torch.randint(0, 256, (count, 3, 112, 112), generator=rng, dtype=torch.uint8)
        made.append({"input_ids": ids, "labels": labels, "tiles": pixels, "num_tiles": count, "source": f"d:{number}"})
    return made


def answers(batch):
    """Tokens of each sample's answer."""
    return [int((sample["labels"] >= 0).sum()) for sample in batch]


def lora(base, **settings):
    settings = {"freeze_projector": True, "llm_lora": LORA, "gradient_checkpointing": False, **settings}
    model = build(base, FlashConsistencyModel, **settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0, 0.1)
    return model


def run(model, batch, collated=collate, **options):
    return model(**model.data_preprocessor(collated(batch), True), **options)


def moved(model):
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def trains(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def by_hand(model, sample):
    """KL at each answer token of one sample, policy and reference computed apart; and the policy's cross entropy."""
    ids, network, answer = sample["input_ids"], model.model, answers([sample])[0]
    compressed = draw_tiles([sample["source"]], [sample["num_tiles"]], 0).tolist()
    patches = network.encode_tiles(model.data_preprocessor.normalize(sample["tiles"]))
    projectors = [network.project_compressed if few else network.project for few in compressed]
    parts = [project(p[None])[0] for project, p in zip(projectors, patches, strict=True)]
    keep = torch.ones_like(ids, dtype=torch.bool)
    for number, few in enumerate(compressed):
        keep[2 + number * N + N // 4 : 2 + (number + 1) * N] = not few

    def probabilities(ids, features):
        """After each token before the answer's, by the LLM alone."""
        embeds = network.get_input_embeddings()(ids)
        embeds[ids == model.img_context_token_id] = torch.cat([torch.zeros(0, 64), *features])
        hidden = network.language_model.model(inputs_embeds=embeds[None]).last_hidden_state[0, -answer - 1 : -1]
        return (hidden @ network.language_model.lm_head.weight.T).softmax(-1)

    q, adapters = probabilities(ids[keep], parts), [m for m in network.modules() if isinstance(m, LoraLayer)]
    for module in adapters:
        module.enable_adapters(False)
    p = probabilities(ids, network.project(patches))
    for module in adapters:
        module.enable_adapters(True)
    return (p * (p / q).log()).sum(-1), -q.log().gather(1, ids[-answer:, None])[:, 0]


@torch.no_grad()
def test_the_loss_is_the_mean_divergence_from_the_reference_by_hand(base):
    """In padded batches and packs; weights, and the mean weight of a step, count as in other training."""
    model = lora(base).eval()
    batch = samples(model)
    kl, entropies = zip(*(by_hand(model, sample) for sample in batch), strict=True)
    expected = torch.cat(kl)
    assert expected.mean() > 0.01 and expected[len(kl[0]) + len(kl[1]) :].min() > 0
    few = int(draw_tiles([sample["source"] for sample in batch], TILES, 0).sum())
    for collated in (collate, collate_packed):
        found = run(model, batch, collated)
        assert abs(found["loss"] - expected.mean()) < 1e-6
        assert (found["sample_losses"][:4] - torch.stack([each.sum() for each in entropies])).abs().max() < 1e-5
        figures = dict(zip(model.metric_names, found["metrics"].tolist(), strict=True))
        assert 0 < few < 6 and found["metrics"][2:].tolist() == [6 * N - 12 * few, 6 * N]
        mean = torch.cat(entropies).mean().item()
        assert model.end_step(figures)["cross_entropy"] == pytest.approx(mean, abs=1e-5)
    weighted = [{**sample, "loss_weight": 0.5 + number} for number, sample in enumerate(batch)]
    weights = torch.tensor([0.5 + number for number in range(4)]) * torch.tensor(answers(batch))
    expected = sum(weight * each.mean() for weight, each in zip(weights, kl, strict=True)) / weights.sum()
    apart = sum(run(model, [sample], mean_weight=weights.sum())["loss"] for sample in weighted)
    assert abs(run(model, weighted)["loss"] - expected) < 1e-6 and abs(apart - expected) < 1e-6


def test_adapters_and_mlp2_get_the_gradient_and_the_reference_is_the_base(base):
    """Without an image the projectors run, too. Other training leaves the Flash parts alone."""
    model = lora(base, gradient_checkpointing=True).train()
    run(model, samples(model))["loss"].backward()
    assert moved(model) == trains(model) and {name.split(".")[1] for name in trains(model)} == {
        "mlp2",
        "language_model",
    }
    assert all("lora_" in name for name in moved(model) if "language" in name)
    model.zero_grad()
    text = run(model, samples(model, (0, 0)))["loss"]
    text.backward()
    assert text > 0 and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    other = build(base, VisionLanguageModel)
    assert all(name.startswith("model.mlp1") for name in trains(other))
    assert {"mlp2", "gating", "pooling_before_gating"} < other.parts().keys()


@torch.no_grad()
def test_a_reference_of_what_trains_whole_is_kept(base):
    whole = build(base, FlashConsistencyModel, freeze_llm=False).eval()
    batch = samples(whole, (2, 1))
    losses = [run(whole, batch)["loss"].item()]
    for part in (whole.model.mlp1, whole.model.language_model):
        for parameter in part.parameters():
            parameter.mul_(1.01)
    losses.append(run(whole, batch)["loss"].item())
    whole._reference._copies.clear()  # then the model is compared with itself
    losses.append(run(whole, batch)["loss"].item())
    assert len({round(value, 4) for value in losses}) == 3


def test_the_divergence_in_chunks_and_its_gradient(monkeypatch):
    torch.manual_seed(0)
    hidden, expected = torch.randn(11, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    head, weight, targets = nn.Linear(8, 30, bias=False).double(), torch.randn(30, 8).double(), torch.arange(11)
    LossHead.take_over(head)
    logits = hidden @ head.weight.T
    p, q = (expected @ weight.T).softmax(-1), logits.softmax(-1)
    for rows in (1, 4, 100):
        monkeypatch.setattr("xtuner_plugins.models.flash.softmax_rows", lambda words, rows=rows: 2 * rows)
        own = hidden.clone().requires_grad_()
        kl, each = divergence(own, head, expected, weight, targets)
        of_hidden, of_head = torch.autograd.grad(kl.sum(), [own, head.weight])
        assert (kl - (p * (p / q).log()).sum(-1)).abs().max() < 1e-5  # softmax in float32
        assert (each - F.cross_entropy(logits, targets, reduction="none")).abs().max() < 1e-5
        assert not each.requires_grad and (of_hidden - (q - p) @ head.weight).abs().max() < 1e-5
        assert (of_head - (q - p).T @ hidden).abs().max() < 1e-5


def test_rows_are_shorter_by_what_the_seed_draws(base):
    model, tiles = lora(base), (3, 1, 0, 5)
    made = samples(model, tiles)
    sources = [sample["source"] for sample in made]
    drawn = draw_tiles(sources, tiles, 0)
    assert drawn.equal(torch.cat([draw_tiles([s], [t], 0) for s, t in zip(sources, tiles, strict=True)]))
    assert 0.45 < draw_tiles(["a:1"], [2000], 3).float().mean() < 0.55
    assert not draw_tiles(["a:1"], [20], 3).equal(draw_tiles(["a:1"], [20], 4))
    inputs = model.data_preprocessor(collate(made), True)
    row, (short,) = inputs["row"], inputs["shorter"]
    assert short.input_ids.shape[1] == row.input_ids.shape[1] - 12 * int(drawn.sum())
    assert row.input_ids[0, row.predicting].equal(short.input_ids[0, short.predicting])
    for start, end in zip(short.segments.bounds, short.segments.bounds[1:], strict=False):
        assert short.position_ids[0, start:end].equal(torch.arange(end - start))
    assert compress_row(row, torch.zeros(9, dtype=torch.bool), N).input_ids.equal(row.input_ids)
    assert short.rates.few.tolist() == drawn.nonzero().flatten().tolist()
    assert [len(p) for p in short.rates[2:]] == [4 * int(drawn.sum()), N * int((~drawn).sum())]


@torch.no_grad()
def test_labels_say_where_compressing_costs_least(base):
    """A ratio for each tile, or one for all tiles of a sample."""
    for exact in (False, True):
        MessageHub.get_current_instance().runtime_info.clear()
        model = build(base, FlashRouterModel, exact_labels=exact, percentile=0.5).eval()
        batch = samples(model)
        outputs = run(model, batch)

        def loss_with(sample, compressed, model=model):
            """Mean cross entropy of one sample's answer with these tiles compressed."""
            row = model.data_preprocessor(collate([sample]))["row"]
            short = compress_row(row, torch.tensor(compressed, dtype=torch.bool), N)
            return (
                -model._token_log_probs(short, model._encode(model.data_preprocessor.normalize(sample["tiles"])))
                .mean()
                .item()
            )

        cheap, ratios = [], []
        for sample, count in zip(batch, TILES, strict=True):
            whole = loss_with(sample, [0] * count)
            cheap += [loss_with(sample, [1] * count) / whole] * count
            ratios += [loss_with(sample, [i == t for i in range(count)]) / whole for t in range(count)]
        labels, others = (
            [int(r >= sum(sorted(all_)[2:4]) / 2) for r in all_] for all_ in (ratios if exact else cheap, cheap)
        )
        pixels = model.data_preprocessor.normalize(torch.cat([sample["tiles"] for sample in batch]))
        logits = model.model.route(model._encode(pixels))
        loss, shares = 0.0, torch.tensor(answers(batch)) / sum(answers(batch))
        of_samples = zip(logits.split(TILES), torch.tensor(labels).split(TILES), shares, strict=True)
        loss = sum(F.cross_entropy(own, wanted) * share for own, wanted, share in of_samples if len(own))
        assert abs(outputs["loss"] - loss) < 1e-6
        right = sum(int(a) == b for a, b in zip(logits.argmax(-1), labels, strict=True))
        agreeing = sum(a == b for a, b in zip(labels, others, strict=True))
        assert outputs["metrics"].tolist() == [6, labels.count(0), right, agreeing]
        logged = model.end_step(dict(zip(model.metric_names, outputs["metrics"].tolist(), strict=True)))
        assert logged["router_accuracy"] == right / 6 and logged["compress_labels"] == labels.count(0) / 6
        assert logged.get("label_agreement") == (agreeing / 6 if exact else None)


def test_the_router_alone_gets_a_gradient_and_remembers_ratios(base):
    model = build(base, FlashRouterModel, window=8).train()
    for seed in range(2):
        outputs = run(model, samples(model, seed=seed))
    outputs["loss"].backward()
    named = trains(model)
    # The bias of keys adds the same to all scores of a query, so its gradient is nil but for rounding.
    assert moved(model) == named == set(model.state_dict())
    assert {name.split(".")[1] for name in named} == {"pooling_before_gating", "gating"}
    assert not any(f".{unused}{number}" in name for name in named for unused in ("attn", "norm") for number in (3, 4))
    assert all(p.grad is None for name, p in model.named_parameters() if name not in named)
    assert len(MessageHub.get_current_instance().get_info("flash_ratios_cheap")) == 8
    text = run(model, samples(model, (0, 0)))["loss"]
    assert text == 0 and text.requires_grad and math.isfinite(text)


def test_what_does_not_fit_is_refused(base, toy_base):
    for kind, path, settings, words in (
        (FlashConsistencyModel, toy_base, {}, "is no Flash model: tools/build_base_model.py"),
        (FlashRouterModel, toy_base, {}, "is no Flash model: tools/build_base_model.py"),
        (FlashRouterModel, base, {"freeze_llm": False}, "trains the router alone, but language_model"),
        (FlashRouterModel, base, {"percentile": 1.0}, "flash_percentile=1.0 is out of range"),
        (FlashRouterModel, base, {"window": 0}, "flash_window=0 is out of range"),
        (FlashConsistencyModel, base, {"sequence_parallel": 2}, "sequence_parallel: rows with compressed tiles"),
    ):
        with pytest.raises(ValueError, match=words):
            build(path, kind, **settings)
