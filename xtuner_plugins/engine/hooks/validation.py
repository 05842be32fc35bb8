"""Validation while training: the loss on data of its own, and questions that are answered and scored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook, IterTimerHook
from mmengine.registry import HOOKS

from ...datasets import MultimodalDataset, PlanSampler, PreferenceDataset, collate, collate_pairs, lock
from ...evaluation.benchmarks import open_data_sets
from ...files import write_whole
from ...inference.session import ChatSession
from ...weights import preprocessing
from ...weights.loader import load_tokenizer
from ..run.steps import unwrap
from ..watch.stopping import agree_to_stop, requests
from .validation_scores import answer_questions, validation_dataset, validation_loss


@HOOKS.register_module()
class ValidationHook(Hook):
    """Validates every ``interval`` optimizer steps and at the end; does nothing without data and benchmarks.

    Training isn't disturbed: the model goes back to training mode, no random number of a step is drawn, and the plan
    stays where it is. It runs before the checkpoint of the same step is saved, so a run that goes on from a checkpoint
    repeats no validation. One that a signal interrupts is repeated when the run goes on.

    Answers go to ``validation/iter_STEP.jsonl`` of the work directory: one object per question.

    Args:
        interval: Optimizer steps between two validations.
        data_paths: Annotation files. Everything else about the data is as in ``train_dataloader.dataset``, except
            ``repeat_times``, ``dataset_settings``, ``reject_list`` and ``jpeg_quality``.
        image_folders: As `MultimodalDataset`.
        batch_size: Samples and questions that a rank takes at a time.
        benchmarks: Files as `tools/evaluate.py` takes, answered and scored; questions without answers are answered.
        benchmark_images: Their image folder; None takes that of each file.
        benchmark_limit: About so many questions of each; None takes all.
        metric: Of the benchmarks; None takes each one's own.
        max_new_tokens: Length limit of an answer.
    """

    priority = "LOW"  # after the timer and the logger, before the checkpoint

    def __init__(
        self,
        interval: int = 500,
        data_paths: str | Sequence[str] = (),
        image_folders: str | Sequence[str | None] | None = None,
        batch_size: int = 4,
        benchmarks: str | Sequence[str] = (),
        benchmark_images: str | None = None,
        benchmark_limit: int | None = None,
        metric: str | None = None,
        max_new_tokens: int = 128,
    ):
        self.interval, self.data_paths, self.image_folders = interval, data_paths, image_folders
        self.batch_size, self.max_new_tokens, self._benchmarks = batch_size, max_new_tokens, benchmarks
        self._benchmark_options = {"images": benchmark_images, "metric": metric, "limit": benchmark_limit}
        self._loader = self._session = None
        self._done: int | None = None  # step of the last validation

    @property
    def dataset(self) -> MultimodalDataset | None:
        """The validation data; None without, and before a run begins."""
        return self._loader.dataset if self._loader else None

    def before_train(self, runner) -> None:
        """Opens data and benchmarks, and repeats a validation that a signal interrupted."""
        if self.data_paths:
            self._loader = self._open_data(runner)
        if self._benchmarks:
            self._questions = open_data_sets(self._benchmarks, **self._benchmark_options)
            self._session = open_session(runner)
            for data_set in self._questions:
                for each in data_set.left_out:
                    runner.logger.warning(f"left out of {data_set.name}: {each.message}")
        if runner.iter > 0 and self._done != runner.iter:
            self._validate(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Validates where it is time."""
        self._validate(runner, runner.iter + 1)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds ``validated``, the step of the last validation, to what is saved."""
        if self._done is not None:
            checkpoint["validated"] = self._done

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Learns which step was validated."""
        self._done = checkpoint.get("validated")

    def _open_data(self, runner):
        training = runner.train_dataloader
        loader = runner.build_dataloader(
            dict(
                batch_size=self.batch_size,
                num_workers=training.num_workers,
                pin_memory=training.pin_memory,
                sampler=dict(type=PlanSampler, shuffle=False),
                collate_fn=dict(type=collate_pairs if isinstance(training.dataset, PreferenceDataset) else collate),
                dataset=validation_dataset(runner.cfg.train_dataloader.dataset, self.data_paths, self.image_folders),
            ),
            seed=runner.seed,
        )
        loader.dataset.keep_images()  # the official code's meta files may ask for changes
        loader.sampler.usable()  # a record that can't be used is an error now, not at the first validation
        return loader

    def _validate(self, runner, step: int) -> None:
        """Validates after a step where it is time, unless a signal has stopped the run."""
        is_due = step % self.interval == 0 or step == runner.max_iters
        if not is_due or requests.agreed or not (self._loader or self._session):
            return
        network, found, ends = unwrap(runner.model), {}, [time.perf_counter()]
        with undisturbed(runner):
            if self._loader is not None:
                found["validation"] = validation_loss(network, self._loader, agree_to_stop)
                ends.append(time.perf_counter())
            if self._session is not None and not requests.agreed:
                sizes = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
                answered = answer_questions(self._questions, network, self._session, **sizes, should_stop=agree_to_stop)
                found["benchmarks"] = answered
                ends.append(time.perf_counter())
        if requests.agreed:
            return
        self._done = step
        for (name, each), (begin, end) in zip(found.items(), pairwise(ends), strict=True):
            runner.visualizer.add_scalars(each.scalars, step=step)
            runner.logger.info(f"{name} after step {step:,} ({end - begin:.1f} s): {each.text}")
            if each.rows and is_main_process():
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in each.rows)
                path = Path(runner.work_dir, "validation", f"iter_{step}.jsonl")
                write_whole(path, lambda beside, text=text: beside.write_text(text, encoding="utf-8"))


@contextmanager
def undisturbed(runner) -> Iterator[None]:
    """Evaluation mode, without a trace in random generators and in the time of the next step."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        runner.model.eval()
        try:
            yield
        finally:
            runner.model.train()
    for hook in runner.hooks:
        if isinstance(hook, IterTimerHook):
            hook.t = time.time()


def open_session(runner) -> ChatSession:
    """A session over the live model with the tiles and the template of an export.

    Of several templates among the training files, the first file's.
    """
    network, dataset = unwrap(runner.model), runner.train_dataloader.dataset
    pixels = network.data_preprocessor
    locked = lock.describe(dataset, pixels.mean.flatten().tolist(), pixels.std.flatten().tolist())
    rule, _ = preprocessing.choose(locked, template=dataset.sources[0].template.name)
    model, tokenizer = network.model, load_tokenizer(runner.cfg.model.base)
    model.template, model.conv_template = rule.template, rule.conversation
    model.system_message = model.conv_template.system_message
    limits = {name: getattr(rule, name) for name in ("min_tiles", "max_tiles", "use_thumbnail")}
    return ChatSession(model, tokenizer, **limits)
