"""Validation in real runs: the loss of each file, scored answers, and a training that doesn't notice."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from xtuner_plugins.evaluation.benchmarks import open_data_sets
from xtuner_plugins.evaluation.results import measure
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.weights.checkpoint import open_checkpoint

from ..forked import train_forked
from ..parallel_case import edited_config, write_dataset

NUM_STEPS = 4  # 16 samples in steps of 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Two files to validate on, of 5 and 2 samples, so that no number of ranks divides them; and questions."""
    folder = tmp_path_factory.mktemp("validation")
    files = [write_dataset(folder / name, count) for name, count in (("five", 5), ("two", 2))]
    for (path, _), name in zip(files, ("five", "two"), strict=True):
        path.rename(path.with_name(f"{name}.jsonl"))
    benchmark = folder / "own.jsonl"
    asked = [{"image": f"five/images/{n % 3}.png", "question": f"What is {n}?", "answer": "Yes."} for n in range(5)]
    asked.append({"image": "five/none.png", "question": "?", "answer": "No."})
    benchmark.write_text("".join(json.dumps(record) + "\n" for record in asked))
    only_asked = folder / "asked.jsonl"
    only_asked.write_text(json.dumps({"image": "two/images/0.png", "question": "Where?"}))
    return dict(
        val_benchmarks=[str(benchmark), str(only_asked)],
        val_metric="cer",
        val_data_paths=[str(files[0][0].with_name("five.jsonl")), str(files[1][0].with_name("two.jsonl"))],
        val_image_folders=[str(images) for _, images in files],
        val_interval=2,
        val_batch_size=2,
    )


def scalars(work_dir: Path) -> list[dict]:
    """What all starts of a run logged, in order."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def validations(work_dir: Path) -> dict[int, dict]:
    return {line["step"]: line for line in scalars(work_dir) if "val_loss" in line}


def answers(work_dir: Path) -> dict[str, list[dict]]:
    """The answers of each validation, by the name of its file."""
    files = sorted((work_dir / "validation").glob("*"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def weights(work_dir: Path, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    tensors = open_checkpoint(work_dir / f"iter_{step}.pth").tensors
    return {name: tensor.read() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, settings):
    """The LoRA recipe with dropout, a micro-batch of its own per sample, and validation every second step."""
    return edited_config(
        tmp_path_factory.mktemp("recipe"),
        "toy_finetune_lora",
        lora_dropout=0.1,
        accumulative_counts=2,
        save_steps=2,
        **settings,
    )


OPTIONS = {"train_dataloader.batch_size": 2, "optim_wrapper.accumulative_counts": 2}
OPTIONS |= {"default_hooks.validation.max_new_tokens": 4}


@pytest.fixture(scope="module")
def validated(toy_base, data, recipe, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("validated") / "run"
    run = train_forked(work_dir, toy_base, data, config=recipe, options=OPTIONS)
    assert run.ok, run.output[-3000:]
    return work_dir


def test_training_is_bit_equal_with_and_without(validated, toy_base, data, settings, tmp_path):
    plain = edited_config(tmp_path, "toy_finetune_lora", lora_dropout=0.1, accumulative_counts=2)
    run = train_forked(tmp_path / "plain", toy_base, data, config=plain, options=OPTIONS)
    assert run.ok, run.output[-3000:]
    assert validations(tmp_path / "plain") == {} == answers(tmp_path / "plain")
    left, right = weights(validated), weights(tmp_path / "plain")
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert [line["loss"] for line in scalars(validated) if "loss" in line] == [
        line["loss"] for line in scalars(tmp_path / "plain") if "loss" in line
    ]


def test_the_loss_comes_at_the_interval_for_each_file_and_all_tokens(validated):
    found = validations(validated)
    assert sorted(found) == [2, 4]
    for line in found.values():
        assert {key for key in line if key.startswith("val_")} == {
            "val_loss",
            "val_loss_by_dataset/five",
            "val_loss_by_dataset/two",
        }
        low, high = sorted(line[f"val_loss_by_dataset/{name}"] for name in ("five", "two"))
        assert low < line["val_loss"] < high
    assert found[2]["val_loss"] != found[4]["val_loss"]


def test_benchmarks_are_scored_as_the_checkpoint_is(validated, settings):
    """By the code of tools/evaluate.py, on the weights of the same step; a question without its image is left out."""
    found = {line["step"]: line["val/own/cer"] for line in scalars(validated) if "val/own/cer" in line}
    assert sorted(found) == [2, 4]
    session = open_session(validated, "iter_4.pth", device="cpu")
    (data_set,) = open_data_sets(settings["val_benchmarks"][:1], metric="cer")
    questions = [(item.question.text, item.question.paths) for item in data_set.items]
    given = session.answers(questions, batch_size=2, max_new_tokens=4)
    known = {item.question.id: answer for item, answer in zip(data_set.items, given, strict=True)}
    measured = measure("own", data_set.metric, data_set.items, known)
    assert len(measured.items) == 5 and found[4] == pytest.approx(measured.headline, rel=1e-6)
    logs = "".join(path.read_text() for path in validated.glob("*/*.log"))
    assert "left out of own: " in logs and "none.png" in logs
    assert f"benchmarks after step 4: own cer {measured.headline:.1f} of 5, asked 1 answers; left out: 1" in logs
    rows = answers(validated)
    assert list(rows) == ["iter_2.jsonl", "iter_4.jsonl"] and [len(each) for each in rows.values()] == [6, 6]
    assert [row["answer"] for row in rows["iter_4.jsonl"][:5]] == given
    assert rows["iter_4.jsonl"][5]["question"] == "Where?" and rows["iter_4.jsonl"][5]["score"] is None


def test_a_run_that_goes_on_repeats_nothing_and_leaves_nothing_out(validated, toy_base, data, recipe, tmp_path):
    """Stopped after step 3 of 4; answers of a validation that no checkpoint knows of are replaced."""
    work_dir = tmp_path / "run"
    run = train_forked(work_dir, toy_base, data, config=recipe, options=OPTIONS, prepare=stop_after_three)
    assert not run.ok and (work_dir / "iter_3.pth").exists(), run.output[-3000:]
    assert list(answers(work_dir)) == ["iter_2.jsonl"]
    (work_dir / "validation/iter_4.jsonl").write_text('{"step": 4, "ima')
    run = train_forked(work_dir, toy_base, data, config=recipe, options=OPTIONS, extra=("--resume", "auto"))
    assert run.ok, run.output[-3000:]
    assert answers(work_dir) == answers(validated)
    found = [line for line in scalars(work_dir) if "val_loss" in line]
    assert found == list(validations(validated).values())


@pytest.mark.slow
def test_half_precision_beside_float32_adapters(toy_base, data, recipe, tmp_path):
    """What is trained is held in float32, so that answers need autocast as the loss does."""
    run = train_forked(tmp_path / "run", toy_base, data, config=recipe, options=OPTIONS | {"model.dtype": "bfloat16"})
    assert run.ok, run.output[-3000:]
    assert len(answers(tmp_path / "run")) == 2 and sorted(validations(tmp_path / "run")) == [2, 4]


def test_a_validation_that_a_signal_interrupts_is_repeated(validated, toy_base, data, recipe, tmp_path):
    work_dir = tmp_path / "run"
    run = train_forked(work_dir, toy_base, data, config=recipe, options=OPTIONS, prepare=stop_while_validating)
    assert not run.ok and (work_dir / "iter_2.pth").exists() and not (work_dir / "iter_3.pth").exists()
    assert validations(work_dir) == {} == answers(work_dir)
    run = train_forked(work_dir, toy_base, data, config=recipe, options=OPTIONS, extra=("--resume", "auto"))
    assert run.ok, run.output[-3000:]
    assert validations(work_dir) == validations(validated) and answers(work_dir) == answers(validated)
    assert all(torch.equal(value, weights(validated)[name]) for name, value in weights(work_dir).items())


def stop_after_three():
    """SIGTERM arrives in the fourth step, which is dropped."""
    from xtuner_plugins.engine.run import steps

    calls, count = [], steps.batch_weight

    def counted(batch):
        calls.append(batch)
        if len(calls) == 2 * 3 + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return count(batch)

    steps.batch_weight = counted


def stop_while_validating():
    """SIGTERM arrives during the first validation."""
    from xtuner_plugins.engine.hooks import validation_scores

    count = validation_scores.supervised_per_sample

    def counted(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return count(batch)

    validation_scores.supervised_per_sample = counted


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, deepspeed",
    [(2, None), (2, "deepspeed_zero2"), (2, "deepspeed_zero3"), (3, "deepspeed_zero3")],
)
def test_any_number_of_ranks_and_any_strategy(validated, toy_base, data, recipe, tmp_path, processes, deepspeed):
    """The same losses and answers as one process; parameters of ZeRO-3 are cut, however small they are.

    Where ranks don't divide a parameter, the last share ends with memory that nothing initializes, and that PyTorch
    fills with NaN here: it is no weight that ends the run.
    """
    deepspeed = deepspeed and cut_everything(deepspeed, tmp_path)
    case = dict(config=recipe, options=OPTIONS | {"model.llm_lora.lora_dropout": 0.0})
    alone = train_forked(tmp_path / "alone", toy_base, data, **case)
    assert alone.ok, alone.output[-3000:]
    case["options"] |= {"train_dataloader.batch_size": 4 // processes, "optim_wrapper.accumulative_counts": 1}
    case["options"] |= {"randomness.deterministic": True}
    run = train_forked(tmp_path / "run", toy_base, data, **case, processes=processes, deepspeed=deepspeed)
    assert run.ok, run.output[-3000:] + run.others
    assert len(answers(tmp_path / "run")) == len(validations(tmp_path / "run")) > 0
    if processes == 2:  # three ranks take other steps
        for step, line in validations(tmp_path / "alone").items():
            assert validations(tmp_path / "run")[step] == pytest.approx(line, rel=1e-5)
        assert answers(tmp_path / "run") == answers(tmp_path / "alone")


def cut_everything(name: str, folder: Path) -> str:
    """Our settings of a strategy, in a file, without parameters that ZeRO-3 leaves whole."""
    from xtuner_plugins.settings import read_deepspeed

    settings = read_deepspeed(name)
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    return str(path)
