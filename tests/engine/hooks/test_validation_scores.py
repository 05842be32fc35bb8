"""What a validation finds: every supervised token once, however many ranks share the samples; scores of the answers."""

import contextlib
import json

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, collate
from xtuner_plugins.engine.hooks.validation_scores import (
    ValidationLoss,
    answer_questions,
    validation_dataset,
    validation_loss,
)
from xtuner_plugins.evaluation.benchmarks import open_data_sets
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.models import VisionLanguageModel

from ..parallel_case import write_dataset


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
    images = [str(images) for _, images in parts]
    options = {"max_length": 512}
    return MultimodalDataset(str(toy_base), list(map(str, files)), images, **options)


def over(model, dataset, rank=0, ranks=1, batch_size=2, stop=lambda: False):
    sampler = PlanSampler(dataset, seed=1, shuffle=False)
    sampler.rank, sampler.num_ranks = rank, ranks
    return validation_loss(model, DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate), stop)


def test_each_file_and_all_tokens(model, dataset):
    """As one sample at a time has them."""
    sums, tokens = {"five": 0.0, "two": 0.0}, {"five": 0, "two": 0}
    for index in (0, 1, 2, 3, 5, 6):
        sample = dataset[index]
        with torch.no_grad():
            outputs = model(**model.data_preprocessor(collate([sample])), mode="loss")
        tokens[sample["dataset"]] += int(outputs["num_supervised"])
        sums[sample["dataset"]] += float(outputs["loss"]) * int(outputs["num_supervised"])
    expected = {f"val_loss_by_dataset/{name}": sums[name] / tokens[name] for name in sums}
    expected["val_loss"] = sum(sums.values()) / sum(tokens.values())
    for batch_size in (1, 2, 7):
        loss = over(model, dataset, batch_size=batch_size)
        assert loss.tokens == tokens and loss.means() == pytest.approx(expected, rel=1e-6)
        assert loss.left_out == {"too_long": 1}
    asked = []
    assert over(model, dataset, stop=lambda: asked.append(1) or len(asked) == 3) is None and len(asked) == 3


def test_ranks_together_count_every_sample_once(model, dataset, ranks=8):
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


def test_the_line_names_files_and_what_is_left_out():
    loss = ValidationLoss({"a": 3.0, "b": 1.0, "c": 0.0}, {"a": 2, "b": 2, "c": 0}, {"too_long": 1})
    assert loss.describe() == "loss 1.0000 (a 1.5000, b 0.5000) over 4 supervised tokens; left out: 1 too_long"
    assert ValidationLoss({"a": 0.5}, {"a": 1}, {}).describe() == "loss 0.5000 over 1 supervised tokens"
    nothing = ValidationLoss({"a": 0.0}, {"a": 0}, {})
    assert nothing.means() == {} and nothing.describe() == "loss nan over 0 supervised tokens"


def test_all_settings_but_those_of_training_alone_are_the_training_s():
    training = dict(type="D", base="b", data_paths=["a"], image_folders=["i"], repeat_times=[2], max_tiles=6)
    training |= dict(dataset_settings=[{}], reject_list="r", jpeg_quality=(75, 100))
    assert validation_dataset(training, ["v"], None) == dict(
        type="D", base="b", max_tiles=6, data_paths=["v"], image_folders=None
    )


class Network(torch.nn.Module):
    """What the training model has beside its weights."""

    @staticmethod
    def computing(device):
        return contextlib.nullcontext()


def test_scores_are_of_the_answers_and_questions_without_are_answered(toy_base, tmp_path):
    session = open_session(toy_base, device="cpu")
    Image.new("RGB", (224, 112), "red").save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no image")
    given = session.answers([("What?", [tmp_path / "a.png"]), ("Hello", [])], max_new_tokens=3)
    rows = [
        {"image": "a.png", "question": "What?", "answer": given[0]},
        {"question": "Hello", "answer": "something else"},
        {"image": "bad.png", "question": "Which?", "answer": "x"},
    ]
    asked = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
    for name, lines in (("own", rows), ("asked", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = open_data_sets([str(tmp_path / f"{name}.jsonl") for name in ("own", "asked")], metric="exact_match")
    options = {"batch_size": 2, "max_new_tokens": 3}
    found = answer_questions(files, Network(), session, **options, should_stop=lambda: False)
    assert found.scalars() == {"val/own/accuracy": 50.0} and found.left_out == 2
    assert found.describe() == "own accuracy 50.0 of 2, asked 2 answers; left out: 2"
    keys = ("dataset", "question", "expected", "answer", "score")
    lines = [tuple(row[key] for key in keys) for row in found.rows if "left_out" not in row]
    assert [row["dataset"] for row in found.rows if "bad.png" in row.get("left_out", "")] == ["own", "asked"]
    assert lines == [
        ("own", files[0].items[0].question.text, (given[0],), given[0], 1.0),
        ("own", files[0].items[1].question.text, ("something else",), given[1], 0.0),
        ("asked", "What?", (), given[0], None),
        ("asked", "Hello", (), given[1], None),
    ]
    assert answer_questions(files, Network(), session, **options, should_stop=lambda: True) is None
    (limited,) = open_data_sets(str(tmp_path / "asked.jsonl"), limit=1)
    assert [item.question.text for item in limited.items] == ["What?"]
