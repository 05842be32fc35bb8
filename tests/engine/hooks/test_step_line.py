"""The line of a step: speed and padding over all ranks, learning rates of live groups, and equal numbers everywhere."""

import re
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xtuner_plugins.datasets.left_out import FILLER
from xtuner_plugins.engine.hooks.run_contract import TITLE
from xtuner_plugins.engine.hooks.step_line import _Window, step_line

from ..forked import STEP_LINE, at_call


def test_a_line_has_everything_in_one_order():
    figures = {"eta": 90061.2, "loss": 1.23456, "grad_norm": 0.98765, "tokens_per_second": 12345.6, "margin": 2}
    figures |= {"samples_per_second": 8.25, "padding": 0.0312, "peak_memory_gib": 61.234, "accuracy": 0.5}
    line = step_line(40, 1200, figures, [2e-5, 1e-6, 1e-3])
    assert STEP_LINE.search("INFO - " + line).groupdict() == {"step": "40", "last": "1200", "loss": "1.2346"}
    assert line == (
        "step   40/1200  eta 1 day, 1:01:01  loss 1.2346  accuracy 50%  margin 2  grad norm 0.988  "
        "lr 1.00e-06..1.00e-03  12,346 tokens/s  8.2 samples/s  padding 3.1%  memory 61.23 GiB"
    )


def test_padding_counts_no_token_and_fillers_no_sample(monkeypatch):
    window, mask = _Window(), torch.tensor([[True, True, True, False], [True, False, False, False]])
    ids = torch.full((2, 4), -100)
    padded = {"input_ids": ids, "labels": ids, "attention_mask": mask, "sources": ["a:1", "a:2"]}
    batches = [padded, {"input_ids": ids[:1], "labels": ids[:1], "sources": [FILLER]}]
    batches = [{**each, "sample_losses": torch.zeros(2), "num_tiles": torch.zeros(2)} for each in batches]
    window.add(batches, {"loss": 0.0, "supervised_tokens": 0}, 2.0)
    speeds = {"tokens_per_second": 4.0, "samples_per_second": 1.0, "padding": pytest.approx(1 / 3)}
    assert window.figures().items() >= speeds.items()
    # Of ranks that share the rows, and have counted the same; one took twice as long.
    monkeypatch.setattr("xtuner_plugins.engine.hooks.step_line.all_reduce", lambda values, op="sum": values.mul_(2))
    assert window.figures(copies=2).items() >= {**speeds, "tokens_per_second": 2.0, "samples_per_second": 0.5}.items()


LINE = re.compile(
    r"step (?P<step>[ \d]+)/5  eta 0:\d\d:\d\d  loss \d\.\d{4}  grad norm \S+  lr [\d.e-]+\.\.[\d.e-]+  "
    r"[\d,]+ tokens/s  [\d,.]+ samples/s  padding \d+\.\d%  memory \d\.\d\d GiB"
)


def beat_fast():
    """Lines after a twentieth of a second, and micro-batches that take twice as long."""
    from xtuner_plugins.engine.hooks import step_line

    step_line.QUIET_S, step_line.POLL_S, step_line.LINES = 0.05, 0.02, 1
    at_call("engine.run.steps.naming", None, lambda batches: time.sleep(0.1))


def test_lines_of_a_run_and_trackers_have_the_same_numbers(train):
    """The loss of a line is the mean over the tokens since the last one; a long step tells how far it is."""
    case = dict(max_steps=5, max_epochs=9, projector_lr=5e-4, batch_size=1, accumulative_counts=4)
    run = train("two", prepare=beat_fast, options={"default_hooks.logger.interval": 2}, **case)
    lines = run.output.splitlines()
    found = [LINE.fullmatch(line) for line in lines if "tokens/s" in line]
    assert [int(match["step"]) for match in found] == [1, 2, 4, 5] and lines[-1] == f"saved {run.saved(5)}"
    told = [line for line in lines if "warning" in line and "learned to look" not in line]
    assert ["forkserver" in line for line in told] == [True]  # which the test has started
    assert (run.work_dir / "losses.png").stat().st_size > 100
    beats = re.findall(r"^step 3/5: micro-batch (\d) of 4, ([\d,]+) tokens, \d+ s$", run.output, re.MULTILINE)
    assert {done for done, _ in beats} >= {"1", "2", "3"}  # there is nothing to say of a step that has just begun
    assert all("0" not in beat for beat in beats)
    text = next(run.work_dir.glob("*/*.log")).read_text()
    shown = [line.removeprefix("warning: ") for line in lines]
    assert [line for line in shown[shown.index(TITLE) :] if line not in text] == [] and "System environment" in text
    (events,) = run.work_dir.glob("*/vis_data/events.out.tfevents.*")
    events = EventAccumulator(str(events)).Reload()
    for key in ("loss", "grad_norm", "lr", "tokens_per_second", "padding", "peak_memory_gib"):
        values = run.logged(key)
        assert [scalar.value for scalar in events.Scalars(key)] == pytest.approx(values, rel=1e-6)
        assert len(values) == 4, key
    each = train("one", **case)
    loss, tokens = each.logged(), each.logged("supervised_tokens")
    third = (loss[2] * tokens[2] + loss[3] * tokens[3]) / (tokens[2] + tokens[3])
    assert run.logged() == pytest.approx([loss[0], loss[1], third, loss[4]], rel=1e-9)
    for logged in (run, each):
        assert logged.logged("loss_by_dataset/train") == pytest.approx(logged.logged(), rel=1e-6)
