"""Flash in training: rows with compressed tiles, the divergence by hand, labels, and what gets a gradient."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from xtuner_plugins.datasets import collate, collate_packed
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.models import FlashConsistencyModel, FlashRouterModel
from xtuner_plugins.models.attention import Segments
from xtuner_plugins.models.flash import _tiles_of, draw_tiles

from .batches import STARTED, build, figures, make_samples

N, TILES = 16, (3, 1, 0, 2)  # tokens of a tile; tiles of the samples
ANSWERS = (3, 4, 5, 3)  # tokens
ADAPTED = dict(freeze_projector=True, llm_lora=STARTED)


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("flash") / "base"
    build_base(toy_base, toy_base, out, projector=toy_base, max_tiles=6, dtype="float32", flash=True)
    return str(out)


def samples(model, tiles=TILES, seed=0):
    return make_samples(model, tiles, length=60, seed=seed, answers=ANSWERS)


def run(model, batch, collated=collate, **options):
    return model(**model.data_preprocessor(collated(batch), True), **options)


def predictions(model, sample, compressed):
    """Log probabilities of all words at each token of a sample's answer, by the network's parts, and those learned."""
    network, labels = model.model, sample["labels"][sample["labels"] >= 0]
    patches = network.encode_tiles(model.data_preprocessor.normalize(sample["tiles"]))
    projectors = [network.project_compressed if few else network.project for few in compressed]
    features = [project(tile[None])[0] for project, tile in zip(projectors, patches, strict=True)]
    words = network.get_input_embeddings()(sample["input_ids"])
    embeds = torch.cat([words[:2], *features, words[2 + N * len(features) :]])
    hidden = network.language_model.model(inputs_embeds=embeds[None]).last_hidden_state[0, -len(labels) - 1 : -1]
    found = network.lm_head(hidden).log_softmax(-1)
    return found, found.gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def test_the_loss_is_the_mean_divergence_from_the_reference_by_hand(base, monkeypatch):
    """In padded batches and packs; weights, and the mean weight of a step, count as in other training.

    Seed and sample alone say which tiles are compressed, each with probability 1/2.
    """
    assert 0.45 < draw_tiles(["a:1"], [2000], 3).float().mean() < 0.55
    assert not draw_tiles(["a:1"], [20], 3).equal(draw_tiles(["a:1"], [20], 4))
    model, reference = build(base, FlashConsistencyModel, **ADAPTED).eval(), build(base).eval()
    batch, kl, entropies, few = samples(model), [], [], 0
    for sample in batch:
        compressed = draw_tiles([sample["source"]], [sample["num_tiles"]], 0)
        q, own = predictions(model, sample, compressed)
        p, _ = predictions(reference, sample, torch.zeros_like(compressed))
        kl.append((p.exp() * (p - q)).sum(-1))
        entropies.append(-own)
        few += int(compressed.sum())
    assert torch.cat(kl).mean() > 0.01 and kl[3].min() > 0 < few < 6
    expected = {"cross_entropy": torch.cat(entropies).mean().item(), "image_tokens": (6 * N - 12 * few) / (6 * N)}
    for collated, rows in ((collate, 8), (collate_packed, 100)):
        monkeypatch.setattr("xtuner_plugins.models.flash.softmax_rows", lambda words, rows=rows: rows)
        found = run(model, batch, collated)
        assert abs(found["loss"] - torch.cat(kl).mean()) < 1e-6
        assert (found["sample_losses"][:4] - torch.stack([each.sum() for each in entropies])).abs().max() < 1e-5
        assert model.end_step(figures(model, found)) == pytest.approx(expected, abs=1e-5)
    weighted = [{**sample, "loss_weight": 0.5 + number} for number, sample in enumerate(batch)]
    weights = torch.tensor([0.5, 1.5, 2.5, 3.5]) * torch.tensor(ANSWERS)
    expected = sum(weight * each.mean() for weight, each in zip(weights, kl, strict=True)) / weights.sum()
    apart = sum(run(model, [sample], mean_weight=weights.sum())["loss"] for sample in weighted)
    assert abs(run(model, weighted)["loss"] - expected) < 1e-6 and abs(apart - expected) < 1e-6


def test_tiles_belong_to_the_sample_in_which_they_stand():
    """One that begins with its image, too."""
    row = SimpleNamespace(image_positions=torch.tensor([1, 2, 5, 6, 7, 8]), segments=Segments((0, 5, 9), None))
    assert [each.tolist() for each in _tiles_of(row, 2)] == [[0, 1, 1], [0, 0, 1]]


@torch.no_grad()
def test_labels_say_where_compressing_costs_least(base, hub):
    """A ratio for each tile, or one for all tiles of a sample."""
    for exact in (False, True):
        hub.runtime_info.clear()
        model = build(base, FlashRouterModel, exact_labels=exact, percentile=0.5).eval()
        batch, cheap, labels = samples(model), [], []
        outputs = run(model, batch)
        for sample, count in zip(batch, TILES, strict=True):
            choices = [[0] * count, [1] * count, *torch.eye(count).tolist()]
            whole, of_all, *of_each = (-predictions(model, sample, choice)[1].mean() for choice in choices)
            cheap += [of_all / whole] * count
            labels += [each / whole for each in of_each]
        cheap, labels = ((each >= each.quantile(0.5)).long() for each in map(torch.stack, (cheap, labels)))
        agreeing, labels = int((labels == cheap).sum()) if exact else 6, labels if exact else cheap
        pixels = model.data_preprocessor.normalize(torch.cat([sample["tiles"] for sample in batch]))
        logits = model.model.route(model.model.encode_tiles(pixels))
        losses = zip(F.cross_entropy(logits, labels, reduction="none").split(TILES), ANSWERS, strict=True)
        loss = sum(each.mean() * answer for each, answer in losses if len(each)) / sum(ANSWERS)
        right, few = int((logits.argmax(-1) == labels).sum()), int((labels == 0).sum())
        assert abs(outputs["loss"] - loss) < 1e-6 and outputs["metrics"].tolist() == [6, few, right, agreeing]
        expected = {"compress_labels": few / 6, "router_accuracy": right / 6}
        assert model.end_step(figures(model, outputs)) == (
            expected | {"label_agreement": agreeing / 6} if exact else expected
        )


def test_adapters_and_mlp2_or_the_router_alone_get_a_gradient(base, hub):
    """Without an image all of it runs, too. Ratios are remembered; other training leaves the Flash parts alone."""
    for kind, settings, parts in (
        (FlashConsistencyModel, ADAPTED, {"mlp2", "language_model"}),
        (FlashRouterModel, dict(window=8), {"pooling_before_gating", "gating"}),
    ):
        model = build(base, kind, **settings).train()
        for seed in range(2):
            outputs = run(model, samples(model, seed=seed))
        outputs["loss"].backward()
        # The bias of keys adds the same to all scores of a query, so its gradient is nil but for rounding.
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == set(model.state_dict()) and {name.split(".")[1] for name in moved} == parts
        assert all("lora_" in name for name in moved if "language" in name)
        model.zero_grad()
        text = run(model, samples(model, (0, 0)))["loss"]
        text.backward()
        assert (text.item() > 0) == (kind is FlashConsistencyModel)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert len(hub.get_info("flash_ratios_cheap")) == 8
    other = build(base)
    assert all(name.startswith("model.mlp1") for name in other.state_dict())
    assert {"mlp2", "gating", "pooling_before_gating"} < other.parts().keys()


def test_what_does_not_fit_is_refused(base, toy_base):
    for kind, path, settings, words in (
        (FlashConsistencyModel, toy_base, {}, "is no Flash model: tools/build_base_model.py"),
        (FlashRouterModel, base, {"freeze_llm": False}, "trains the router alone, but language_model"),
        (FlashRouterModel, base, {"percentile": 1.0}, "flash_percentile=1.0 is out of range"),
        (FlashConsistencyModel, base, {"sequence_parallel": 2}, "sequence_parallel: rows with compressed tiles"),
    ):
        with pytest.raises(ValueError, match=words):
            build(path, kind, **settings)
