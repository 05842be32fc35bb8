"""The reference's log probabilities, computed before the first step, are those of the live reference."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub

from tests.small_data import write_dataset
from xtuner_plugins.datasets import PreferenceDataset, SettingError, collate_pairs
from xtuner_plugins.datasets import reference as reference_module
from xtuner_plugins.datasets.preference import filler_pair
from xtuner_plugins.engine import PrecomputedReferenceHook
from xtuner_plugins.engine.run.loops import TrainingStopped
from xtuner_plugins.models import PreferenceModel

NUM_PAIRS = 10


@pytest.fixture(autouse=True)
def _own_hub():
    MessageHub.get_current_instance().runtime_info.clear()


@pytest.fixture(scope="module")
def build(toy_base):
    def make(**settings):
        torch.manual_seed(0)
        return PreferenceModel(str(toy_base), dtype="float32", objectives={"dpo": 1.0}, freeze_llm=False, **settings)

    return make


@pytest.fixture
def data(toy_base, tmp_path):
    path, images = write_dataset(tmp_path / "data", NUM_PAIRS)
    (images / "2.png").write_bytes(b"no image")

    def make(**settings):
        settings = {"max_tiles": 4, "on_bad_sample": "skip", **settings}
        return PreferenceDataset(str(toy_base), [str(path.with_name("pairs.jsonl"))], str(images), **settings)

    return make


def runner_of(model, dataset, step=0, load_from=None, quantization=None, **loader):
    settings = {"batch_size": 2, "num_workers": 0, **loader}
    cfg = ConfigDict(train_dataloader=settings, model=ConfigDict(llm_quantization=quantization), load_from=load_from)
    return SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset), iter=step, cfg=cfg)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(reference_module, "CHUNK", 4)


def run(model, samples):
    return model(**model.data_preprocessor(collate_pairs(samples)), mode="loss")


def test_the_loss_is_that_with_a_live_reference_while_the_model_changes(build, data, tmp_path):
    live, model, dataset = build(), build(precomputed_reference=True), data()
    assert live._reference.num_bytes > 0 == model._reference.num_bytes
    PrecomputedReferenceHook(str(tmp_path / "kept")).before_train(runner_of(model, dataset, num_workers=1))
    samples = [dataset[index] for index in range(NUM_PAIRS) if index != 2]
    with torch.no_grad():
        for network in (live, model):
            for parameter in network.parameters():
                parameter.add_(0.01 if parameter.requires_grad else 0)
    for part in (samples[:3], samples[3:]):
        expected, found = run(live, part), run(model, part)
        assert expected["metrics"][model.metric_names.index("kl")] > 1e-3  # the model isn't its reference any more
        torch.testing.assert_close(found["loss"], expected["loss"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["metrics"], expected["metrics"], atol=1e-4, rtol=1e-4)
    assert dataset[2]["dropped"]
    assert torch.isfinite(run(model, [filler_pair(model.tile_size)])["loss"])


def test_a_second_start_computes_nothing_and_a_stopped_one_goes_on(build, data, tmp_path, monkeypatch):
    model, computed = build(precomputed_reference=True), []
    compute = PreferenceModel.reference_log_probs
    monkeypatch.setattr(
        PreferenceModel, "reference_log_probs", lambda *args, **kw: computed.append(1) or compute(*args, **kw)
    )
    hook = PrecomputedReferenceHook(str(tmp_path / "kept"))
    save, saved = reference_module.ReferenceLogProbs.save, []

    def stop_at_the_second(*args):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*args))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reference_module.ReferenceLogProbs, "save", stop_at_the_second)
        hook.before_train(runner_of(model, data()))
    assert len(computed) == 4  # two chunks of two batches
    hook.before_train(runner_of(model, data()))
    assert len(computed) == 8  # of three chunks, two were left
    hook.before_train(runner_of(model, data()))
    assert len(computed) == 8
    hook.before_train(runner_of(model, data(max_tiles=2)))
    assert len(computed) == 14  # other tiles, other log probabilities


OTHER_WEIGHTS = "begins with other weights .load_from='iter_3.pth'.*Start once without"


def test_what_is_no_reference_is_refused_unless_it_is_there(build, data, tmp_path):
    model, hook = build(precomputed_reference=True), PrecomputedReferenceHook(str(tmp_path / "kept"))
    with pytest.raises(SettingError, match="precompute_reference with jpeg_quality"):
        hook.before_train(runner_of(model, data(jpeg_quality=(75, 100))))
    others = {"step": 3}, {"load_from": "iter_3.pth"}
    for other, message in zip(others, ("can only be computed before the first step", OTHER_WEIGHTS), strict=True):
        with pytest.raises(TrainingStopped, match=message):
            hook.before_train(runner_of(model, data(), **other))
    hook.before_train(runner_of(model, data()))
    for other in others:
        hook.before_train(runner_of(model, data(), **other))


def test_another_share_of_a_file_and_a_quantized_base_have_their_own(build, data, tmp_path):
    model, kept = build(precomputed_reference=True), tmp_path / "kept"
    for number, (settings, held) in enumerate(
        [
            ({"repeat_times": 0.5}, {}),
            ({}, {}),
            ({"repeat_times": 2}, {}),
            ({}, {"quantization": {"load_in_4bit": True}}),
        ]
    ):
        dataset = data(**settings)
        PrecomputedReferenceHook(str(kept)).before_train(runner_of(model, dataset, **held))
        samples = [dataset[index] for index in range(len(dataset))]
        assert all(len(sample["reference"]) for sample in samples if not sample.get("dropped"))
        assert len(list(kept.iterdir())) == (1, 2, 2, 3)[number]


@pytest.mark.parametrize("moment", ["begin", "save"])
def test_two_runs_at_the_same_time(build, data, tmp_path, monkeypatch, moment):
    model, hook = build(precomputed_reference=True), PrecomputedReferenceHook(str(tmp_path / "kept"))
    original, began = getattr(reference_module.ReferenceLogProbs, moment), []

    def with_another_run(*args):
        if not began:
            began.append(1)
            hook.before_train(runner_of(model, data()))
        return original(*args)

    monkeypatch.setattr(reference_module.ReferenceLogProbs, moment, with_another_run)
    dataset = data()
    hook.before_train(runner_of(model, dataset))
    assert began and all(len(dataset[index]["reference"]) for index in range(NUM_PAIRS) if index != 2)
    (folder,) = (tmp_path / "kept").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["00000.npz", "00001.npz", "00002.npz", "records.npz"]


def test_a_folder_that_cant_be_written_is_said_before_anything_is_computed(build, data, tmp_path, monkeypatch):
    model = build(precomputed_reference=True)
    monkeypatch.setattr(PreferenceModel, "reference_log_probs", None)
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(SettingError, match="name another folder: default_hooks.reference.folder"):
        PrecomputedReferenceHook(str(tmp_path / "kept")).before_train(runner_of(model, data()))


def test_pairs_without_them_or_with_other_answers_are_refused(build, data, tmp_path):
    model, dataset = build(precomputed_reference=True), data()
    with pytest.raises(ValueError, match="leave val_data_paths empty"):
        run(model, [dataset[0], dataset[1]])
    PrecomputedReferenceHook(str(tmp_path / "kept")).before_train(runner_of(model, dataset))
    with pytest.raises(ValueError, match="log probabilities of the reference were computed, but its answers have 3"):
        dataset.reference.of(0, 0, 3, "train.jsonl:1")


def test_other_models_are_left_alone(data, tmp_path):
    dataset = data()
    PrecomputedReferenceHook(str(tmp_path / "kept")).before_train(runner_of(torch.nn.Linear(1, 1), dataset))
    assert dataset.reference is None and not (tmp_path / "kept").exists()
