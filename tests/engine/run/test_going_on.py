"""Runs that are killed or told to stop, in whatever they do, go on bit-equal; others end in one line that says why."""

import os
import resource
import signal
import time
from functools import partial

import pytest
import torch

from xtuner_plugins.engine.watch.stopping import ONE_REQUEST_SECONDS

from ..forked import LAYOUTS, at_call, contents, fault, require_equal, send

NUM_STEPS, SAVED, STOPPED = 8, 3, 5  # 16 samples in steps of 4, twice
STEP, UPDATE = "engine.run.loops.PlannedTrainLoop.run_iter", "engine.hooks.step_line.StepLineHook.after_train_iter"
AGREE, TERM = "engine.run.steps.agree_to_stop", partial(send, signal.SIGTERM)
DISK = "checkpoint {run}/iter_6.pth could not be written: "
SIGNALS = {"plain": signal.SIGINT, "ddp": signal.SIGUSR1, "zero3": signal.SIGUSR2}


def recipe(layout="plain", **more):
    """Accumulation, dropout, warm-up; every third step is saved, and one checkpoint kept."""
    own = dict(leaf="toy_finetune_lora", lora_dropout=0.1, warmup_ratio=0.3, max_epochs=2, layout=layout)
    batches = dict(batch_size=1, accumulative_counts=4 // LAYOUTS[layout][0])
    return {**own, **batches, "save_steps": SAVED, "save_total_limit": 1, **more}


def overflow_at_first(then=None):
    """In float16: scales start so high that the first step overflows, and grow soon."""
    torch.amp.GradScaler = partial(torch.amp.GradScaler, init_scale=2.0**40, growth_interval=2)
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.fp16 import loss_scaler

    get_accelerator().is_fp16_supported = lambda: True  # of a CPU without fast products, too
    make, early = loss_scaler.DynamicLossScaler.__init__, {"init_scale": 2.0**24, "scale_window": 2}
    loss_scaler.DynamicLossScaler.__init__ = lambda self, **given: make(self, **given | early)
    if then:
        then()


def cut_save(number, rank):
    """Of the n-th file that a rank saves half is written when the process is killed."""
    save, calls = torch.save, []

    def half_way(content, target, *args, **kwargs):
        save(content, target, *args, **kwargs)
        calls.append(target)
        if len(calls) == number and os.environ.get("RANK", "0") == str(rank):
            os.truncate(target, os.path.getsize(target) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half_way


# DeepSpeed's second rank writes one file per checkpoint, under ZeRO-3 two; a plain file is written by the first.
CUTS = {"plain": (2, 0), "ddp": (2, 0), "zero2": (2, 1), "zero3": (4, 1)}
WAYS = {"killed": LAYOUTS, "cut": CUTS, "stopped": SIGNALS}


def ending(way, layout):
    """The fault, in the sixth step or in the second save, and the step that the run goes on from."""
    processes, _ = LAYOUTS[layout]
    if way == "stopped":  # by a signal that only the last rank gets, between two micro-batches
        call = 4 // processes * STOPPED + 2
        return fault(AGREE, call, partial(send, SIGNALS[layout]), processes - 1), STOPPED
    if way == "cut":
        return partial(cut_save, *CUTS[layout]), SAVED
    return fault(STEP, STOPPED + 1, partial(send, signal.SIGKILL)), SAVED


def in_tiers(rows):
    """Rows of a table: one process in float32 is quick, and so is what can't be written."""
    is_quick = [not {"plain", DISK}.isdisjoint(row) and "float16" not in row for row in rows]
    return [
        row if quick else pytest.param(*row, marks=pytest.mark.slow) for row, quick in zip(rows, is_quick, strict=True)
    ]


KINDS = {"float32": {}, "float16": {"dtype": "float16"}, "8 bits": {"optimizer": "AdamW8bit"}}
CASES = [(way, layout, "float32") for way, layouts in WAYS.items() for layout in layouts]
CASES += [("killed", "plain", "8 bits"), ("killed", "plain", "float16"), ("killed", "zero2", "float16")]


@pytest.mark.parametrize("way, layout, kind", in_tiers(CASES))
def test_a_run_goes_on_bit_equal(train, once, way, layout, kind):
    """In float16 the scale of the loss, too, which overflows have changed."""
    case, (end, saved) = recipe(layout, **KINDS[kind]), ending(way, layout)
    whole = once(f"{layout}-{kind}", prepare=overflow_at_first, **case)
    status = 128 + SIGNALS[layout] if way == "stopped" else -signal.SIGKILL
    ended = train("run", codes=(status, *[1] * (way != "stopped")), prepare=partial(overflow_at_first, end), **case)
    checkpoint = ended.saved(saved)
    assert list(ended.work_dir.glob("iter_*")) == [checkpoint]
    assert len(list(ended.work_dir.glob(".*.partial"))) == (way == "cut")
    if way == "stopped":
        lines = ended.output.splitlines()
        told = f"stopped by {SIGNALS[layout].name} after step {saved}, saved to {checkpoint}; go on with"
        assert lines[lines.index(told) + 1].endswith("--resume auto")
    again = train("run", extra=("--resume", "auto"), prepare=overflow_at_first, **case)
    assert f"resuming from {checkpoint}" in again.output and len(whole.logged()) == NUM_STEPS
    assert (len(set(whole.logged("loss_scale"))) > 1) == (kind == "float16")
    for key in ("loss", "loss_scale", "overflows"):
        assert again.logged(key) == whole.logged(key)[saved:]
    final = again.saved(NUM_STEPS)
    assert [*again.work_dir.glob("iter_*"), *again.work_dir.glob(".*")] == [final]
    require_equal(contents(final), contents(whole.saved(NUM_STEPS)))


def stop_and_stop_again():
    """A signal in the second step, and another one while the run saves."""
    at_call(AGREE, 6, TERM)
    at_call("engine.hooks.whole_checkpoint.WholeCheckpointHook._save_checkpoint_with_step", 1, again)


def again(*_):
    time.sleep(ONE_REQUEST_SECONDS)
    TERM()


def test_signals_that_save_nothing_more(train):
    """A second one ends at once; one in the last step leaves a complete run; without the optimizer none goes on.

    What the complete run has saved is no start for a model that trains other parts.
    """
    run = train("twice", codes=(143,), prepare=stop_and_stop_again, **recipe())
    assert "second signal: ended at once" in run.output and not list(run.work_dir.glob("iter_*"))
    assert "go on with" not in run.output
    run = train("last", prepare=fault(UPDATE, NUM_STEPS, TERM), **recipe())
    assert run.saved(NUM_STEPS).exists() and "go on" not in run.output
    other = train("other", codes=(2,), options={"load_from": str(run.saved(NUM_STEPS))})  # of the whole LLM
    assert "another choice of trained parts: missing model.language_model" in other.errors[0]
    weights_only = {"options": {"default_hooks.checkpoint.save_optimizer": False}}
    run = train("weights", codes=(143,), prepare=fault(AGREE, 10, TERM), **recipe(**weights_only))
    assert "go on with" not in run.output
    assert "stopped by SIGTERM after step 2; no checkpoint to resume from" in run.output


def run_out(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def poison(batches):
    batches[0]["loss_weights"] = torch.full((len(batches[0]["num_tiles"]),), float("nan"))


def explode(hidden, *_):
    hidden.register_hook(lambda gradient: gradient * float("inf"))


def limit_files(*_):
    """No file may grow beyond a size, smaller than a checkpoint: the system refuses as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


NAMED, GRADIENT = "engine.run.steps.naming", "models.vlm.next_token_loss"
PLAIN, DEEPSPEED = (f"engine.run.steps.{name}.backward" for name in ("_PlainDriver", "_DeepSpeedDriver"))
MEMORY, GRADIENT_SAYS = "step 1: out of memory on rank 0 with 1 samples of ", "step 1: the gradient norm is "
# Layout; what happens, and where; what the one error line says, how many samples it names, and whether the third step
# was saved before. `naming` is called with each micro-batch, and with all of a step at the update.
ENDS = [
    ("plain", fault(PLAIN, 3 * 4 + 3, run_out), "step 4: out of memory on rank 0 with 1 samples of ", 1, True),
    ("plain", fault(NAMED, 4 * 5 + 3, poison), "step 5: the loss is nan, from the samples ", 1, True),
    *((layout, fault(GRADIENT, 1, explode), GRADIENT_SAYS, 4, False) for layout in ("plain", "zero2", "zero3")),
    *((layout, fault(STEP, 5, limit_files), DISK, 0, True) for layout in ("plain", "ddp", "zero2")),
    *((layout, fault(NAMED, 3 + 1, poison, 0), "step 2: the loss is nan", 1, False) for layout in ("ddp", "zero2")),
    ("ddp", fault(PLAIN, 1, run_out, 0), MEMORY, 1, False),
    ("zero2", fault(DEEPSPEED, 1, run_out, 0), MEMORY, 1, False),
]


@pytest.mark.parametrize(
    "layout, prepare, says, named, is_saved",
    in_tiers(ENDS),
    ids=[f"{number}-{row[0]}" for number, row in enumerate(ENDS)],
)
def test_a_run_that_cannot_go_on_ends_in_one_line(train, data, layout, prepare, says, named, is_saved):
    """No good checkpoint is lost, nothing half-written stays, every rank ends, and one speaks."""
    codes = (1, -signal.SIGKILL) if says is MEMORY else (1,)  # no other rank hears of it
    run = train("run", codes=codes, prepare=prepare, **recipe(layout))
    [line] = run.errors
    last = f"The last good checkpoint is {run.saved(3)}" if is_saved else "nothing was saved yet"
    assert says.format(run=run.work_dir) in line and last in line
    assert line.count(f"{data[0]}:") == named, line  # the micro-batch at fault, or the step
    assert [path.name for path in run.work_dir.iterdir() if "iter_" in path.name] == ["iter_3.pth"] * is_saved
    assert says is MEMORY or "error" not in run.others
