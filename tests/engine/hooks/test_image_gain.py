"""The gain by images: its interval, what is exchanged, when it is measured, and what a run says of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.engine.hooks.image_gain import ImageGain, ImageGainHook, exchange, losses, measure, open_samples
from xtuner_plugins.engine.watch.errors import OutOfMemory
from xtuner_plugins.export import card
from xtuner_plugins.export.trained import lay_over
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.weights.reading import load_pickle


def test_with_one_token_each_it_is_the_paired_t_test():
    own, other = np.random.default_rng(0).normal(1, 0.3, (2, 9))
    found = ImageGain.of(np.stack([own, other, np.ones(9)], 1), (1.0, 1.0))
    expected = ttest_rel(other, own)
    assert found.gain == pytest.approx((other - own).mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_tokens_weigh_and_the_interval_holds_what_it_says():
    """Over many draws of samples with different numbers of tokens, 95 of 100 intervals hold the true ratio."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(1000):
        tokens = rng.integers(1, 20, 32)
        own = rng.normal(2.0, 0.5, 32) * tokens
        rows = np.stack([own, own + rng.normal(0.3, 0.4, 32) * tokens, tokens], 1)
        found = ImageGain.of(rows, (1.0, 1.0))
        assert found.gain == pytest.approx((rows[:, 1] - rows[:, 0]).sum() / tokens.sum())
        hits += found.low <= 0.3 <= found.high
    assert 920 <= hits <= 975


def test_the_next_sample_gives_its_tiles_in_as_many_as_there_were():
    samples = [{"num_tiles": count, "tiles": torch.full((count, 3, 1, 1), value)} for value, count in ((1, 2), (2, 3))]
    samples[1]["tiles"][:, 0, 0, 0] = torch.tensor([7, 8, 9])
    first, second = exchange(samples)
    assert first["tiles"][:, 0, 0, 0].tolist() == [7, 8] and second["tiles"].shape == (3, 3, 1, 1)
    assert (second["tiles"] == 1).all() and (samples[0]["tiles"] == 1).all()


def test_samples_have_images_that_differ(toy_base, data):
    dataset = MultimodalDataset(toy_base, [str(data[0])], [str(data[1])], max_tiles=2, max_length=1024)
    found = open_samples(dataset, 8)
    assert 2 <= len(found) <= 8 and all(sample["num_tiles"] for sample in found)
    tiles = [sample["tiles"] for sample in found]
    assert not any(torch.equal(a, b) for n, a in enumerate(tiles) for b in tiles[:n])


def shown(network, number: int) -> list[dict]:
    """Samples with one tile of noise and equal words; the last token alone differs."""
    ids = torch.tensor([5, *[network.img_context_token_id] * network.num_image_token, 6, 0])
    labels = torch.full_like(ids, -100)
    found = []
    for answer in range(20, 20 + number):
        ids[-1] = labels[-1] = answer
        tiles = torch.randint(0, 256, (1, 3, network.tile_size, network.tile_size), dtype=torch.uint8)
        found.append(dict(input_ids=ids.clone(), labels=labels.clone(), tiles=tiles, num_tiles=1, source=str(answer)))
    return found


def test_a_model_that_learned_its_images_gains_and_a_blind_one_does_not(toy_base):
    torch.manual_seed(0)
    network = VisionLanguageModel(str(toy_base), freeze_llm=False, freeze_visual_encoder=False, dtype="float32")
    samples = shown(network, 6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    batch = network.data_preprocessor(collate(samples))
    for _ in range(60):
        loss = network(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = measure(network.eval(), samples, 2)
    assert found.low > 0 and found.num_samples == len(samples)
    features = network.model.project(network._encode(batch["pixel_values"]))
    assert found.projector_norm == pytest.approx(features.norm(dim=-1).mean().item(), rel=1e-4)
    with torch.no_grad():
        network.model.mlp1[-1].weight.zero_()
        network.model.mlp1[-1].bias.zero_()
    blind = measure(network, samples, 2)
    assert blind.gain == pytest.approx(0, abs=1e-6) and blind.projector_norm == 0 and blind.word_norm > 0


def test_memory_that_runs_out_names_the_samples():
    class Full:
        data_preprocessor = dict

        def __call__(self, **_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    sample = dict(input_ids=torch.tensor([5, 6]), labels=torch.tensor([-100, 6]), num_tiles=1, source="a.jsonl:3")
    sample["tiles"] = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(OutOfMemory, match="1 samples of 2 tokens and 1 tiles, from the samples a.jsonl:3"):
        losses(Full(), [sample], 1)


def scalars(run):
    (path,) = run.work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_says_it_warns_and_is_not_disturbed(train):
    """The toy base's random parts can't see yet."""
    case = dict(leaf="toy_finetune_lora", lora_dropout=0.1, batch_size=2)
    run = train("with", **case)
    lines = scalars(run)
    measured, last = [line for line in lines if "images/gain" in line], max(line["step"] for line in lines)
    assert {line["step"] for line in measured} == {1, round(last / 2), last}
    assert "own images lower the loss by" in run.output and all(line["images/low"] <= 0 for line in measured)
    assert run.output.count("has not learned to look") == len(measured)
    newest = run.work_dir / f"iter_{last}.pth"
    assert load_pickle(newest)["image_gain"]["images/gain"] == measured[-1]["images/gain"]
    shown = card.make(lay_over(None, newest))  # the model card takes all from this checkpoint
    assert f"a word {measured[-1]['images/word_norm']:.3g}." in shown
    assert f"lower the loss by {measured[-1]['images/gain']:.3f} nats" in shown and "| command | " in shown
    assert f"| optimizer steps | {measured[-1]['step']} |" in shown and "| share |" in shown
    without = train("without", lines="custom_hooks.pop()\n", **case)
    assert "own images" not in without.output and without.logged() == run.logged()


def test_pairs_and_samples_without_images_are_left_alone():
    hook = ImageGainHook()
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=[1, 2]), iter=0)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
