"""The gain by images: its interval, when it is measured, and what a run says of it."""

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from scipy.stats import ttest_rel

from tests.models.batches import WHOLE, build
from xtuner_plugins.datasets import collate
from xtuner_plugins.engine.hooks import image_gain
from xtuner_plugins.engine.hooks.image_gain import ImageGain, ImageGainHook, measure, open_samples
from xtuner_plugins.engine.watch.errors import OutOfMemory
from xtuner_plugins.weights.reading import load_pickle


def test_with_one_token_each_the_interval_is_that_of_the_paired_t_test():
    own, other = np.random.default_rng(0).normal(1, 0.3, (2, 9))
    for weight in (1, 3):  # tokens weigh
        found = ImageGain.of(own * weight, other * weight, np.full(9, weight), (1.0, 1.0))
        assert found.gain == pytest.approx((other - own).mean())
        assert (found.low, found.high) == pytest.approx(tuple(ttest_rel(other, own).confidence_interval()))


def noisy(network, answer):
    """A sample with one tile of noise; samples have equal words but for the last token."""
    ids = torch.tensor([5, *[network.img_context_token_id] * network.num_image_token, 6, answer])
    labels = torch.where(torch.arange(len(ids)) < len(ids) - 1, -100, ids)
    tiles = torch.randint(0, 256, (1, 3, network.tile_size, network.tile_size), dtype=torch.uint8)
    return dict(input_ids=ids, labels=labels, tiles=tiles, num_tiles=1, source=f"a.jsonl:{answer}")


def test_a_model_that_learned_its_images_gains_and_a_blind_one_does_not(toy_base):
    network = build(toy_base, **WHOLE)
    samples = [noisy(network, answer) for answer in range(20, 26)]
    optimizer, batch = torch.optim.AdamW(network.parameters(), lr=3e-3), network.data_preprocessor(collate(samples))
    for _ in range(60):
        network(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    found = measure(network.eval(), samples, 2)
    assert found.low > 0 and found.num_samples == len(samples)
    features = network.model.project(network._encode(batch["pixel_values"]))
    assert found.projector_norm == pytest.approx(features.norm(dim=-1).mean().item(), rel=1e-4)
    for parameter in network.model.mlp1[-1].parameters():
        parameter.data.zero_()
    blind = measure(network, samples, 2)
    assert blind.gain == pytest.approx(0, abs=1e-6) and blind.projector_norm == 0 and blind.word_norm > 0
    network.register_forward_pre_hook(run_out)
    with pytest.raises(OutOfMemory, match="2 samples of .* and 2 tiles, from the samples a.jsonl:20"):
        measure(network, samples, 2)


def test_samples_have_different_images_and_something_to_learn():
    held = [  # tiles; what is seen; labels, of which the first is never predicted
        *((1, 0, [-100, -100]), (1, 1, [5, -100]), (1, 2, [-100, 0]), (1, 2, [-100, 3])),
        *((0, 3, [-100, 0]), (1, 4, [-100, 7])),
    ]
    held = [dict(num_tiles=n, tiles=torch.tensor([seen]), labels=torch.tensor(labels)) for n, seen, labels in held]
    assert [sample["tiles"].item() for sample in open_samples(held, 6)] == [2, 4]


def test_before_a_tenth_of_a_run_it_does_not_warn(monkeypatch):
    monkeypatch.setattr(image_gain, "measure", lambda *_: ImageGain(0.0, -1.0, 1.0, 1.0, 1.0, 8))
    monkeypatch.setattr(image_gain, "undisturbed", nullcontext)
    (hook := ImageGainHook())._samples, hook._steps = [{}], {4, 5}
    for step, warned in ((4, False), (5, True)):
        runner = mock.MagicMock(iter=step - 1, max_iters=50, model=torch.nn.Identity())
        hook.after_train_iter(runner, step - 1)
        assert runner.logger.info.called and runner.logger.warning.called == warned


def run_out(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def measure_half():
    image_gain.SHARE = 1.0


def measure_nothing():
    ImageGainHook.before_train = Hook.before_train


def test_a_run_says_it_warns_and_is_not_disturbed(train):
    """The toy base's random parts can't see yet."""
    case = dict(leaf="toy_finetune_lora", lora_dropout=0.1, batch_size=2, max_steps=4)
    run = train("with", prepare=measure_half, **case)
    measured, last = run.scalars("images/gain"), run.scalars("loss")[-1]["step"]
    assert {line["step"] for line in measured} == {1, round(last / 2), last}
    assert "own images lower the loss by" in run.output and ", 8 samples)" in run.output
    assert all(line["images/low"] <= 0 for line in measured)
    assert run.output.count("has not learned to look") == len(measured)
    assert load_pickle(run.saved(last))["image_gain"]["images/gain"] == measured[-1]["images/gain"]
    without = train("without", prepare=measure_nothing, **case)
    assert "own images" not in without.output and without.logged() == run.logged()
