"""Validation in real runs: the loss of each file, scored answers, and a training that doesn't notice."""

import json
import re
import signal
from collections import Counter
from functools import partial

import pytest
from torch.utils.data import DataLoader

from tests.models.batches import build
from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, collate
from xtuner_plugins.engine.hooks import validation
from xtuner_plugins.evaluation.benchmarks import open_data_sets
from xtuner_plugins.evaluation.results import measure
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.settings import read_deepspeed

from ..forked import contents, fault, require_equal, send, write_dataset

# 16 samples in 4 steps of 2 micro-batches, with dropout.
LORA = dict(leaf="toy_finetune_lora", lora_dropout=0.1, batch_size=2, accumulative_counts=2)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of 5 and 2 samples, so that no number of ranks divides them, and their images; one of the 5 is too long."""
    folder = tmp_path_factory.mktemp("validation")
    made = {name: write_dataset(folder / name, count) for name, count in (("five", 5), ("two", 2))}
    paths = [path.rename(path.with_name(f"{name}.jsonl")) for name, (path, _) in made.items()]
    lines = paths[0].read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("What do you see?", "What do you see? " * 200)
    paths[0].write_text("".join(lines))
    return list(map(str, paths)), [str(images) for _, images in made.values()]


@pytest.fixture(scope="module")
def settings(files, tmp_path_factory):
    """Two files, and questions with and without answers; one question without its image."""
    folder = tmp_path_factory.mktemp("questions")
    asked = [{"image": f"{n % 3}.png", "question": f"What is {n}?", "answer": "Yes."} for n in range(5)]
    own = jsonl(folder / "own.jsonl", [*asked, {"image": "none.png", "question": "?", "answer": "No."}])
    where = jsonl(folder / "asked.jsonl", [{"image": "0.png", "question": "Where?"}])
    case = dict(val_benchmarks=[own, where], val_benchmark_images=files[1][0], val_metric="cer", save_steps=2)
    case |= dict(val_data_paths=files[0], val_image_folders=files[1], max_length=512, val_max_new_tokens=4)
    return dict(**case, val_interval=2, val_batch_size=2, **LORA)


def answers(run):
    """The answers of each validation, by the name of its file."""
    written = sorted((run.work_dir / "validation").glob("*"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in written}


def test_each_supervised_token_counts_once_on_any_number_of_ranks(toy_base, files, monkeypatch):
    """As one sample at a time has them; with as many forward passes on each rank, also on more of them than samples."""
    model, dataset = build(toy_base).eval(), MultimodalDataset(str(toy_base), *files, max_length=512)
    sums, tokens, passes, gathered, asked = Counter(), Counter(), [], [], []
    for sample in (sample for sample in map(dataset.__getitem__, range(len(dataset))) if "dropped" not in sample):
        count, batch = int((sample["labels"][1:] >= 0).sum()), collate([sample])
        for key in ("val_loss", f"val_loss_by_dataset/{batch['datasets'][0]}"):
            sums[key] += count * model(**model.data_preprocessor(batch), mode="loss")["loss"].item()
            tokens[key] += count
    model.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(validation, "all_gather_object", lambda own: gathered.append(own) or gathered)

    def over(rank=0, ranks=1, batch_size=2, stop=lambda: False):
        sampler = PlanSampler(dataset, seed=1, shuffle=False)
        sampler.rank, sampler.num_ranks = rank, ranks
        loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate)
        return validation.validation_loss(model, loader, stop)

    for ranks, batch_size in ((1, 1), (1, 2), (1, 7), (3, 1), (8, 2)):
        gathered.clear(), passes.clear()
        found = [(over(rank, ranks, batch_size), len(passes)) for rank in range(ranks)]
        whole, first = found[-1][0], found[0][1]
        assert [number for _, number in found] == [first * rank for rank in range(1, ranks + 1)]
        assert whole.scalars == pytest.approx({key: sums[key] / tokens[key] for key in sums}, rel=1e-6)
        told = rf"loss \S+ \(five \S+, two \S+\) over {tokens['val_loss']} supervised tokens; left out: 1 too_long"
        assert re.fullmatch(told, whole.text), whole.text
    assert over(stop=lambda: asked.append(1) or len(asked) == 3) is None and len(asked) == 3
    own = dict(type="D", base="b", max_tiles=6, data_paths=["v"], image_folders=None)
    of_training = dict.fromkeys(("image_folders", "repeat_times", "dataset_settings", "reject_list", "jpeg_quality"))
    assert validation.validation_dataset({**own, **of_training, "data_paths": ["a"]}, ["v"]) == own


@pytest.fixture(scope="module")
def validated(once, settings):
    return once("validated", **settings)


def test_training_is_bit_equal_and_a_run_that_a_signal_stops_validates_on(validated, settings, train):
    """What was validated in part is left out, and an unfinished file of answers replaced."""
    plain = train("plain", max_length=512, **LORA)
    assert plain.scalars("val_loss") == [] and answers(plain) == {} and plain.logged() == validated.logged()
    told = fault("engine.hooks.validation.validation_loss", 1, partial(send, signal.SIGTERM))
    stopped = train("run", codes=(128 + signal.SIGTERM,), prepare=told, **settings)
    assert stopped.saved(2).exists() and answers(stopped) == {} and stopped.scalars("val_loss") == []
    (stopped.work_dir / "validation").mkdir()
    (stopped.work_dir / "validation/iter_4.jsonl").write_text('{"step": 4, "ima')
    again, key = train("run", extra=("--resume", "auto"), **settings), "iter_4.jsonl"
    assert answers(again) == {key: answers(validated)[key]}
    assert again.scalars("val_loss") == validated.scalars("val_loss")[1:]
    for run in (plain, again):
        require_equal(contents(run.saved(4)), contents(validated.saved(4)))


def test_each_file_has_its_loss_and_answers_are_scored_as_those_of_the_checkpoint(validated, settings):
    """By the code of tools/evaluate.py, on the weights of the same step; a question without its image is left out."""
    two, four = validated.scalars("val_loss")
    assert (two["step"], four["step"]) == (2, 4) and two["val_loss"] != four["val_loss"]
    low, high = sorted(four[f"val_loss_by_dataset/{name}"] for name in ("five", "two"))
    assert low < four["val_loss"] < high and "validation after step 4 (" in validated.output
    session = open_session(validated.work_dir, "iter_4.pth", device="cpu")
    images = settings["val_benchmark_images"]
    (data_set,) = open_data_sets(settings["val_benchmarks"][:1], metric="cer", images=images)
    questions = [(item.text, item.paths) for item in data_set.questions]
    given = session.answers(questions, batch_size=2, max_new_tokens=4)
    known = dict(zip((item.id for item in data_set.questions), given, strict=True))
    measured = measure(data_set, known)
    assert validated.logged("val/own/cer")[1] == pytest.approx(measured.headline, rel=1e-6)
    assert "left out of own: " in validated.output and "none.png" in validated.output
    assert f"s): own cer {measured.headline:.1f} of 5, asked 1 answers; left out: 1\n" in validated.output
    rows = answers(validated)
    assert list(rows) == ["iter_2.jsonl", "iter_4.jsonl"] and [len(each) for each in rows.values()] == [6, 6]
    asked = [["own", item.id, list(item.images), item.text, ["Yes."]] for item in data_set.questions]
    scored = zip(asked, given, measured.scores, strict=True)
    *own, (*where, answer, score) = map(list, (row.values() for row in rows["iter_4.jsonl"]))
    assert own == [[*row, answer, score] for row, answer, score in scored]
    assert [where[0], *where[3:], score] == ["asked", "Where?", [], None] and answer is not None


@pytest.mark.parametrize(
    "processes, shared, stage, dtype",
    [
        (2, 2, None, "float32"),
        pytest.param(1, 1, None, "bfloat16", marks=pytest.mark.slow),
        *(pytest.param(ranks, 1, n, "float32", marks=pytest.mark.slow) for ranks, n in ((2, 2), (2, 3), (3, 3))),
    ],
)
def test_any_strategy_and_dtype(once, settings, train, tmp_path, processes, shared, stage, dtype):
    """The same losses and answers as one process; parameters of ZeRO-3 are cut, however small they are.

    Where ranks don't divide one, the last share ends with memory that PyTorch fills with NaN here: it is no weight.
    """
    settings = {**settings, "lora_dropout": 0.0}
    own = {"dtype": dtype, "processes": processes, "sequence_parallel": shared}
    own |= {"batch_size": 4 * shared // processes, "accumulative_counts": 1}
    if stage:
        cut = read_deepspeed(f"deepspeed_zero{stage}")
        cut["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (tmp_path / "cut.json").write_text(json.dumps(cut))
        own["deepspeed"] = str(tmp_path / "cut.json")
    run = train("run", options={"randomness.deterministic": True}, **{**settings, **own})
    assert len(answers(run)) == len(run.scalars("val_loss")) > 0
    assert ("; 2 ranks share each row\n" in run.output) == (shared == 2)
    if processes == 2:  # three ranks take other steps
        alone = once("alone", **settings)
        for line, expected in zip(run.scalars("val_loss"), alone.scalars("val_loss"), strict=True):
            assert line == pytest.approx(expected, rel=1e-5)
        assert answers(run) == answers(alone)
