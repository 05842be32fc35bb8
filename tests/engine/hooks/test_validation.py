"""Validation in real runs: the loss of each file, scored answers, and a training that doesn't notice."""

import json
import signal
from functools import partial

import pytest

from xtuner_plugins.evaluation.benchmarks import open_data_sets
from xtuner_plugins.evaluation.results import measure
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.settings import read_deepspeed

from ..forked import fault, send
from ..parallel_case import contents, require_equal, write_dataset

# 16 samples in 4 steps of 2 micro-batches, with dropout.
LORA = dict(leaf="toy_finetune_lora", lora_dropout=0.1, batch_size=2, accumulative_counts=2)
TERM = partial(send, signal.SIGTERM)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Two files to validate on, of 5 and 2 samples, so that no number of ranks divides them; and questions."""
    folder = tmp_path_factory.mktemp("validation")
    files, images = zip(
        *(write_dataset(folder / name, count) for name, count in (("five", 5), ("two", 2))), strict=True
    )
    files = [path.rename(path.with_name(f"{path.parent.name}.jsonl")) for path in files]
    asked = [{"image": f"five/images/{n % 3}.png", "question": f"What is {n}?", "answer": "Yes."} for n in range(5)]
    asked.append({"image": "five/none.png", "question": "?", "answer": "No."})
    (folder / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
    (folder / "asked.jsonl").write_text(json.dumps({"image": "two/images/0.png", "question": "Where?"}))
    benchmarks = dict(val_benchmarks=[str(folder / "own.jsonl"), str(folder / "asked.jsonl")], val_metric="cer")
    data = dict(val_data_paths=list(map(str, files)), val_image_folders=list(map(str, images)))
    return dict(**benchmarks, **data, val_interval=2, val_batch_size=2, val_max_new_tokens=4, save_steps=2, **LORA)


def scalars(run, key):
    """What all starts of a run logged with a key, in order."""
    files = sorted(run.work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if key in line]


def answers(run):
    """The answers of each validation, by the name of its file."""
    files = sorted((run.work_dir / "validation").glob("*"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


@pytest.fixture(scope="module")
def validated(once, settings):
    return once("validated", **settings)


def test_training_is_bit_equal_and_each_file_has_its_loss(validated, train):
    plain = train("plain", **LORA)
    assert scalars(plain, "val_loss") == [] and answers(plain) == {} and plain.logged() == validated.logged()
    require_equal(*(contents(run.work_dir / "iter_4.pth") for run in (validated, plain)))
    found = scalars(validated, "val_loss")
    assert [line["step"] for line in found] == [2, 4] and found[0]["val_loss"] != found[1]["val_loss"]
    for line in found:
        low, high = sorted(value for key, value in line.items() if key.startswith("val_loss_by_dataset/"))
        assert low < line["val_loss"] < high and {"val_loss_by_dataset/five", "val_loss_by_dataset/two"} < line.keys()


def test_benchmarks_are_scored_as_the_checkpoint_is(validated, settings):
    """By the code of tools/evaluate.py, on the weights of the same step; a question without its image is left out."""
    found = {line["step"]: line["val/own/cer"] for line in scalars(validated, "val/own/cer")}
    session = open_session(validated.work_dir, "iter_4.pth", device="cpu")
    (data_set,) = open_data_sets(settings["val_benchmarks"][:1], metric="cer")
    questions = [(item.question.text, item.question.paths) for item in data_set.items]
    given = session.answers(questions, batch_size=2, max_new_tokens=4)
    known = {item.question.id: answer for item, answer in zip(data_set.items, given, strict=True)}
    measured = measure("own", data_set.metric, data_set.items, known)
    assert (
        len(measured.items) == 5 and found.keys() == {2, 4} and found[4] == pytest.approx(measured.headline, rel=1e-6)
    )
    assert "left out of own: " in validated.output and "none.png" in validated.output
    told = f"benchmarks after step 4: own cer {measured.headline:.1f} of 5, asked 1 answers; left out: 1"
    assert told in validated.output
    rows = answers(validated)
    assert list(rows) == ["iter_2.jsonl", "iter_4.jsonl"] and [len(each) for each in rows.values()] == [6, 6]
    assert [row["answer"] for row in rows["iter_4.jsonl"][:5]] == given
    assert rows["iter_4.jsonl"][5]["question"] == "Where?" and rows["iter_4.jsonl"][5]["score"] is None


@pytest.mark.parametrize(
    "place, call, saved", [("run.steps.batch_weight", 7, 3), ("hooks.validation_scores.naming", 1, 2)]
)
def test_a_run_that_goes_on_repeats_nothing_and_leaves_nothing_out(validated, settings, train, place, call, saved):
    """A signal comes in the fourth step, or in the first validation, which is repeated; old answers are replaced."""
    stopped = train("run", codes=(128 + signal.SIGTERM,), prepare=fault(f"engine.{place}", call, TERM), **settings)
    assert [path.name for path in stopped.work_dir.glob("iter_*")] == [f"iter_{n}.pth" for n in {2, saved}]
    assert list(answers(stopped)) == ["iter_2.jsonl"] * (saved - 2) and len(scalars(stopped, "val_loss")) == saved - 2
    if saved == 3:
        (stopped.work_dir / "validation/iter_4.jsonl").write_text('{"step": 4, "ima')
    again = train("run", extra=("--resume", "auto"), **settings)
    assert answers(again) == answers(validated) and scalars(again, "val_loss") == scalars(validated, "val_loss")
    require_equal(*(contents(run.work_dir / "iter_4.pth") for run in (again, validated)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, stage, dtype", [(1, None, "bfloat16"), *((2, n, "float32") for n in (None, 2, 3)), (3, 3, "float32")]
)
def test_any_strategy_and_dtype(once, settings, train, tmp_path, processes, stage, dtype):
    """The same losses and answers as one process; parameters of ZeRO-3 are cut, however small they are.

    Where ranks don't divide a parameter, the last share ends with memory that nothing initializes, and that PyTorch
    fills with NaN here: it is no weight that ends the run. In half precision adapters are held in float32, so that
    answers need autocast as the loss does.
    """
    settings = {**settings, "lora_dropout": 0.0}
    if stage:
        cut = read_deepspeed(f"deepspeed_zero{stage}")
        cut["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (tmp_path / "cut.json").write_text(json.dumps(cut))
    own = {"dtype": dtype, "batch_size": 4 // processes, "accumulative_counts": 1}
    own |= {"processes": processes, "deepspeed": stage and str(tmp_path / "cut.json")}
    run = train("run", options={"randomness.deterministic": True}, **{**settings, **own})
    assert len(answers(run)) == len(scalars(run, "val_loss")) > 0
    if processes == 2:  # three ranks take other steps
        alone = once("alone", **settings)
        for line, expected in zip(scalars(run, "val_loss"), scalars(alone, "val_loss"), strict=True):
            assert line == pytest.approx(expected, rel=1e-5)
        assert answers(run) == answers(alone)
