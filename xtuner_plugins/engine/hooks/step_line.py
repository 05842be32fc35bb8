"""One line per interval: where a run stands, what it learns, and how fast; and a sign of life in between."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, is_main_process
from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...datasets.left_out import FILLER
from ...models.losses import supervised_per_sample
from ..run.loops import planned_loop
from ..run.steps import progress
from ..watch.errors import peak_gib
from .losses_png import draw_at_end

# Seconds without a line after which one says that the run works, and those that a step has before it is told of.
QUIET_S, FRESH_S, POLL_S = 25.0, 5.0, 1.0
LINES = 20  # that a run has at least; so a short one has a line for every step
# What a line shows of a step's figures, in its order; those that are missing aren't shown.
WORDS = {
    "eta": "eta {}",
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.0%}",  # of preference pairs, as the margin
    "margin": "margin {:.3g}",
    "grad_norm": "grad norm {:.3g}",
    "lr": "lr {}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "samples_per_second": "{:,.1f} samples/s",
    "padding": "padding {:.1%}",
    "peak_memory_gib": "memory {:.2f} GiB",
}


@HOOKS.register_module()
class StepLineHook(LoggerHook):
    """MMEngine's hook with a line of our own for training steps; validation is logged as MMEngine does.

    Speed is counted between two lines, over all ranks, from the moment that a step's batches are asked for to its end:
    checkpoints and validation aren't part of it, but of the remaining time. Tokens are those of text and images without
    padding. Peak memory is that of the rank that needed most: of the GPU, or on a CPU of the whole process. The loss is
    the mean over the supervised tokens since the last line. Where no line is due for half a minute, one tells how far
    the step is.

    The log file's line goes on with all other values of the step, and so do ``scalars.json`` and TensorBoard. One is
    ``loss_by_dataset/NAME``: the mean cross entropy since the last line, in which ``loss_weight`` doesn't count. At the
    end of a run the losses of all its starts are drawn into ``losses.png``.

    Args:
        interval: Optimizer steps between two lines, fewer in a run with less than `LINES` of them; the first and the
            last step always have one.
        log_metric_by_epoch: As `mmengine.hooks.LoggerHook`.
        **options: As `mmengine.hooks.LoggerHook`.
    """

    def __init__(self, interval: int = 10, log_metric_by_epoch: bool = False, **options: Any):
        super().__init__(interval, log_metric_by_epoch=log_metric_by_epoch, **options)
        self._window = _Window()

    def before_train(self, runner) -> None:
        """Starts the clock."""
        self._begun, self._first_step, self._window = time.perf_counter(), runner.iter, _Window()
        self._said, self._ended = time.monotonic(), threading.Event()
        if is_main_process():
            threading.Thread(target=self._tell_progress, args=(runner,), daemon=True, name="heartbeat").start()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Writes the line where one is due."""
        self._window.add(data_batch, outputs, time.perf_counter() - planned_loop(runner).fetching_since)
        step, last = runner.iter + 1, runner.max_iters
        if step % max(1, min(self.interval, last // LINES)) and step not in (self._first_step + 1, last):
            return
        values, _ = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
        values |= self._window.figures(planned_loop(runner).dataloader_iterator.plan.copies)
        values["eta"] = (time.perf_counter() - self._begun) / (step - self._first_step) * (last - step)
        self._window = _Window()
        shown = step_line(step, last, values, [group["lr"] for group in runner.optim_wrapper.optimizer.param_groups])
        others = "  ".join(f"{name} {value:.6g}" for name, value in sorted(values.items()))
        runner.logger.info(f"{shown}  | {others}", extra={"terminal": shown})
        runner.visualizer.add_scalars(values, step=step, file_path=self.json_log_path)
        self._said = time.monotonic()

    def after_train(self, runner) -> None:
        """As MMEngine's; ends the signs of life, and draws."""
        self._ended.set()
        super().after_train(runner)
        if is_main_process():
            draw_at_end(runner.work_dir)

    def _tell_progress(self, runner) -> None:
        """Says at least every 30 seconds how far a step is, where no other line does."""
        while not self._ended.wait(POLL_S):
            now = time.monotonic()
            if now - self._said >= QUIET_S and (progress.done or now - progress.since >= FRESH_S):
                print_log(f"step {runner.iter + 1}/{runner.max_iters}: {progress}", "current")
                self._said = now


def step_line(step: int, last: int, figures: Mapping[str, float], rates: Sequence[float]) -> str:
    """The line of a training step.

    Args:
        step: Optimizer steps done.
        last: Optimizer steps of the run.
        figures: Of the step, by the names in `WORDS`; ``eta`` in seconds, ``padding`` as a share of all positions.
        rates: Learning rates of the optimizer's groups, of which the lowest and the highest are shown.
    """
    given = {**figures, "lr": "..".join(dict.fromkeys(f"{rate:.2e}" for rate in (min(rates), max(rates))))}
    if "eta" in given:
        given["eta"] = timedelta(seconds=round(given["eta"]))
    words = [form.format(given[name]) for name, form in WORDS.items() if name in given]
    return "  ".join([f"step {step:>{len(str(last))}}/{last}", *words])


class _Window:
    """What this rank has done since the last line."""

    def __init__(self):
        self.seconds, self.tokens, self.positions, self.samples = 0.0, 0, 0, 0
        self.loss, self.supervised = 0.0, 0.0
        self._losses: list[torch.Tensor] = []  # one tensor [samples] per micro-batch, on the device: no step waits
        self._of: list[tuple[str, int]] = []  # data set and supervised tokens of each of these samples

    def add(self, batches: Sequence[dict], outputs: Mapping[str, float], seconds: float) -> None:
        """Adds a step: its time, its loss weighted by its supervised tokens (of all ranks), and those of its samples.

        Args:
            batches: Its micro-batches; ``sample_losses`` are taken out.
            outputs: Of `run_step`.
            seconds: From asking for its batches to its end.
        """
        for batch in batches:
            positions = batch["input_ids"].numel()
            mask = batch.get("attention_mask")
            self.positions += positions
            self.tokens += positions if mask is None else int(mask.sum())
            self.samples += sum(source != FILLER for source in batch.get("sources", ()))
            losses, counts = batch.pop("sample_losses"), supervised_per_sample(batch).tolist()
            samples = list(zip(batch.get("datasets", ()), counts, strict=False))
            self._losses.append(losses)
            self._of += samples + [("", 0)] * (len(losses) - len(samples))  # the padding of a pack
        self.seconds += seconds
        self.loss += outputs["loss"] * outputs["supervised_tokens"]
        self.supervised += outputs["supervised_tokens"]

    def figures(self, copies: int = 1) -> dict[str, float]:
        """Mean loss, speed and padding over all ranks, and the memory of the rank that needed most.

        Args:
            copies: Ranks that share each row, and have all counted it.
        """
        sums = torch.tensor([self.tokens, self.positions, self.samples], dtype=torch.float64) / copies
        most = torch.tensor([self.seconds, peak_gib()], dtype=torch.float64)
        all_reduce(sums)
        all_reduce(most, "max")
        tokens, positions, samples = sums.tolist()
        seconds, peak = most.tolist()
        return {
            **({"loss": self.loss / self.supervised} if self.supervised else {}),
            **self._by_dataset(),
            "tokens_per_second": tokens / seconds,
            "samples_per_second": samples / seconds,
            "padding": 1 - tokens / positions,
            "peak_memory_gib": peak,
        }

    def _by_dataset(self) -> dict[str, float]:
        own = losses, tokens = Counter(), Counter()
        for loss, (name, count) in zip(torch.cat(self._losses).tolist() if self._losses else (), self._of, strict=True):
            losses[name] += loss
            tokens[name] += count
        losses, tokens = (sum(each, Counter()) for each in zip(*all_gather_object(own), strict=True))
        return {f"loss_by_dataset/{name}": losses[name] / tokens[name] for name in sorted(tokens) if name}
