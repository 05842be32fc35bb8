"""The loss on validation data: every supervised token once, however many ranks share the samples."""

import pytest
import torch
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, collate
from xtuner_plugins.engine.validation_loss import ValidationLoss, validation_dataset, validation_loss
from xtuner_plugins.models import VisionLanguageModel

from .parallel_case import write_dataset


@pytest.fixture(scope="module")
def model(toy_base):
    torch.manual_seed(0)
    return VisionLanguageModel(base=str(toy_base), dtype="float32").eval()


@pytest.fixture(scope="module")
def dataset(toy_base, tmp_path_factory):
    """Five and two samples; one of the five is too long for the limit."""
    folder = tmp_path_factory.mktemp("data")
    parts = [write_dataset(folder / name, count) for name, count in (("five", 5), ("two", 2))]
    files = [path.rename(path.with_name(f"{path.parent.name}.jsonl")) for path, _ in parts]
    lines = files[0].read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("What do you see?", "What do you see? " * 200)
    files[0].write_text("".join(lines))
    return MultimodalDataset(
        str(toy_base), list(map(str, files)), [str(images) for _, images in parts], max_length=512,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


def over(model, dataset, rank=0, ranks=1, batch_size=2, stop=lambda: False):
    sampler = PlanSampler(dataset, seed=1, shuffle=False)
    sampler.rank, sampler.num_ranks = rank, ranks
    return validation_loss(model, DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate), stop)


@pytest.fixture(scope="module")
def expected(model, dataset):
    """Sum and number of supervised tokens of each file, one sample at a time."""
    found = {"five": [0.0, 0], "two": [0.0, 0]}
    for index in range(len(dataset)):
        if index != 4:
            sample = dataset[index]
            with torch.no_grad():
                outputs = model(**model.data_preprocessor(collate([sample])), mode="loss")
            count = int(outputs["num_supervised"])
            found[sample["dataset"]][0] += float(outputs["loss"]) * count
            found[sample["dataset"]][1] += count
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_each_file_and_all_tokens(model, dataset, expected, batch_size):
    loss = over(model, dataset, batch_size=batch_size)
    assert loss.tokens == {name: count for name, (_, count) in expected.items()}
    for name, (total, count) in expected.items():
        assert loss.by_dataset()[name] == pytest.approx(total / count, rel=1e-6)
    total, count = map(sum, zip(*expected.values(), strict=True))
    assert loss.mean == pytest.approx(total / count, rel=1e-6) and loss.left_out == {"too_long": 1}


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_ranks_together_count_every_sample_once(model, dataset, ranks):
    """With as many forward passes on each, also where there are fewer samples than ranks."""
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    whole, parts, passes = over(model, dataset), [], []
    for rank in range(ranks):
        calls.clear()
        parts.append(over(model, dataset, rank, ranks))
        passes.append(len(calls))
    handle.remove()
    assert len(set(passes)) == 1
    for name in whole.sums:
        assert sum(part.tokens[name] for part in parts) == whole.tokens[name]
        assert sum(part.sums[name] for part in parts) == pytest.approx(whole.sums[name], rel=1e-6)
    assert sum(part.left_out.get("too_long", 0) for part in parts) == 1


def test_it_may_be_stopped_between_batches(model, dataset):
    asked = []
    assert over(model, dataset, stop=lambda: asked.append(1) or len(asked) == 3) is None and len(asked) == 3


def test_without_tokens_there_is_no_mean():
    empty = ValidationLoss({"a": 0.0}, {"a": 0}, {})
    assert empty.mean != empty.mean and empty.by_dataset() == {}


def test_all_settings_but_those_of_training_alone_are_the_training_s():
    training = dict(type="D", base="b", data_paths=["a"], image_folders=["i"], repeat_times=[2], max_tiles=6)
    training |= dict(dataset_settings=[{}], reject_list="r", augment={"color": 0.2})
    assert validation_dataset(training, ["v"], None) == dict(
        type="D", base="b", max_tiles=6, data_paths=["v"], image_folders=None
    )
