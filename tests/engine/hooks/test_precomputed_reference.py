"""The reference's log probabilities, computed before the first step, are those of the live reference."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub

from tests.models.batches import build
from xtuner_plugins.datasets import PreferenceDataset, SettingError, collate_pairs, reference
from xtuner_plugins.datasets.preference import filler_pair
from xtuner_plugins.datasets.reference import ReferenceLogProbs
from xtuner_plugins.engine import PrecomputedReferenceHook
from xtuner_plugins.engine.run.loops import TrainingStopped
from xtuner_plugins.models import PreferenceModel

from ..parallel_case import write_dataset

NUM_PAIRS, UNREADABLE = 10, 2
COMPUTE = PreferenceModel.reference_log_probs
MODEL = dict(kind=PreferenceModel, objectives={"dpo": 1.0}, freeze_llm=False)


@pytest.fixture(autouse=True)
def _own_hub_and_small_chunks(monkeypatch):
    MessageHub.get_current_instance().runtime_info.clear()
    monkeypatch.setattr(reference, "CHUNK", 4)


@pytest.fixture
def model(toy_base):
    return build(toy_base, precomputed_reference=True, **MODEL)


@pytest.fixture
def pairs(toy_base, tmp_path):
    """pairs(**settings) -> ten pairs, of which the image of one can't be read."""
    path, images = write_dataset(tmp_path / "data", NUM_PAIRS)
    (images / f"{UNREADABLE}.png").write_bytes(b"no image")
    files, skip = ([str(path.with_name("pairs.jsonl"))], str(images)), {"max_tiles": 4, "on_bad_sample": "skip"}
    return lambda **settings: PreferenceDataset(str(toy_base), *files, **{**skip, **settings})


@pytest.fixture
def begin(tmp_path):
    """begin(model, dataset) -> the dataset, after the hook of a run that begins with both."""

    def begin(model, dataset, step=0, load_from=None, quantization=None, num_workers=0):
        loader, held = {"batch_size": 2, "num_workers": num_workers}, {"llm_quantization": quantization}
        cfg = ConfigDict(train_dataloader=loader, model=held, load_from=load_from)
        runner = SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset), iter=step, cfg=cfg)
        PrecomputedReferenceHook(str(tmp_path / "kept")).before_train(runner)
        return dataset

    return begin


def run(model, samples):
    return model(**model.data_preprocessor(collate_pairs(samples)), mode="loss")


def has_all(dataset):
    samples = [dataset[index] for index in range(len(dataset))]
    return all(len(sample["reference"]) for sample in samples if not sample.get("dropped"))


def test_the_loss_is_that_with_a_live_reference_while_the_model_changes(toy_base, model, pairs, begin):
    live, dataset = build(toy_base, **MODEL), pairs()
    with pytest.raises(ValueError, match="leave val_data_paths empty"):
        run(model, [dataset[0], dataset[1]])
    assert live._reference.num_bytes > 0 == model._reference.num_bytes
    begin(model, dataset, num_workers=1)
    samples = [dataset[index] for index in range(NUM_PAIRS) if index != UNREADABLE]
    for parameter in (*live.parameters(), *model.parameters()):
        parameter.data.add_(0.01 if parameter.requires_grad else 0)
    for part in (samples[:3], samples[3:]):
        expected, found = run(live, part), run(model, part)
        assert expected["metrics"][model.metric_names.index("kl")] > 1e-3  # the model isn't its reference any more
        torch.testing.assert_close(found["loss"], expected["loss"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["metrics"], expected["metrics"], atol=1e-4, rtol=1e-4)
    assert dataset[UNREADABLE]["dropped"] and run(model, [filler_pair(model.tile_size)])["loss"].isfinite()
    with pytest.raises(ValueError, match="log probabilities of the reference were computed, its answers have 3 tokens"):
        dataset.reference.of(0, 0, 3, "train.jsonl:1")


def test_nothing_is_computed_twice(model, pairs, begin, tmp_path, monkeypatch):
    """A stopped start goes on; other tiles, another share of a file and a quantized base have their own."""
    save = ReferenceLogProbs.save
    computed = mock.create_autospec(COMPUTE, side_effect=COMPUTE)
    monkeypatch.setattr(PreferenceModel, "reference_log_probs", computed)
    stop = mock.Mock(side_effect=[None, KeyboardInterrupt])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ReferenceLogProbs, "save", lambda *args: stop() or save(*args))
        begin(model, pairs())
    assert computed.call_count == 4  # two chunks of two batches
    for settings, held, number, folders in (
        ({}, None, 8, 1),  # of three chunks, two were left
        ({}, None, 8, 1),
        ({"repeat_times": 2}, None, 8, 1),
        ({"max_tiles": 2}, None, 14, 2),
        ({"repeat_times": 0.5}, None, None, 3),
        ({}, {"load_in_4bit": True}, None, 4),
    ):
        assert has_all(begin(model, pairs(**settings), quantization=held))
        assert number in (None, computed.call_count) and len(list((tmp_path / "kept").iterdir())) == folders, settings


def test_what_is_no_reference_is_refused_unless_it_is_there(model, pairs, begin, tmp_path):
    """Other models are left alone; a folder that can't be written is told before anything is computed."""
    assert begin(torch.nn.Linear(1, 1), pairs()).reference is None and not (tmp_path / "kept").exists()
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(SettingError, match="name another folder: default_hooks.reference.folder"):
        begin(model, pairs())
    (tmp_path / "kept").unlink()
    with pytest.raises(SettingError, match="precompute_reference with jpeg_quality"):
        begin(model, pairs(jpeg_quality=(75, 100)))
    for number, message in (
        ("step", "can only be computed before the first step"),
        ("load_from", "with other weights"),
    ):
        with pytest.raises(TrainingStopped, match=message):
            begin(model, pairs(), **{number: 3})
    begin(model, pairs())
    begin(model, pairs(), step=3, load_from="iter_3.pth")
