"""Validation while training: the loss on data of its own, scores on benchmarks, and a panel of questions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook, IterTimerHook
from mmengine.registry import HOOKS

from ... import preprocessing
from ...checkpoints.loader import load_tokenizer
from ...checkpoints.partition import is_partitioned
from ...datasets import MultimodalDataset, PlanSampler, PreferenceDataset, SettingError, collate, collate_pairs
from ...datasets.images.media import open_image
from ...hub.conversation import get_conv_template
from ...inference.session import ChatSession
from ...ranges import check, check_benchmarks
from ..panel import PanelLog, read_panel
from ..steps import unwrap
from ..stopping import agree_to_stop, requests
from ..validation_loss import ValidationLoss, validation_dataset, validation_loss
from ..validation_scores import ValidationScores


@HOOKS.register_module()
class ValidationHook(Hook):
    """Validates every ``interval`` optimizer steps and at the end; does nothing without data, benchmarks and panel.

    Training isn't disturbed: the model goes back to training mode, no random number of a step is drawn, and the plan
    stays where it is. It runs before the checkpoint of the same step is saved, so a run that goes on from a checkpoint
    repeats no validation. One that a signal interrupts is repeated when the run goes on.

    Args:
        interval: Optimizer steps between two validations.
        data_paths: Annotation files. Everything else about the data is as in ``train_dataloader.dataset``, except
            ``repeat_times``, ``dataset_settings``, ``reject_list`` and ``augment``.
        image_folders: As `MultimodalDataset`.
        batch_size: Samples and questions that a rank takes at a time.
        benchmarks: Files as `tools/evaluate.py` takes, answered and measured.
        benchmark_images: Their image folder; None takes that of each file.
        benchmark_limit: About so many questions of each; None takes all.
        metric: Of the benchmarks; None takes each one's own.
        panel: As `read_panel`.
        panel_max_new_tokens: Length limit of an answer.

    Raises:
        RangeError: A number out of its range, or a panel that can't be used.
        MediaError: An image of the panel can't be opened.
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
        panel: str | Sequence[Mapping[str, Any]] | None = None,
        panel_max_new_tokens: int = 128,
    ):
        check("val_interval", interval)
        check("val_batch_size", batch_size)
        check("panel_max_new_tokens", panel_max_new_tokens)
        check_benchmarks(benchmarks)
        if benchmark_limit is not None:
            check("val_benchmark_limit", benchmark_limit)
        self.interval, self.data_paths, self.image_folders = interval, data_paths, image_folders
        self.batch_size, self.max_new_tokens = batch_size, panel_max_new_tokens
        self.records = read_panel(panel)
        for record in self.records:
            open_image(record.image)
        self._benchmarks = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
        self._benchmark_options = {"images": benchmark_images, "metric": metric, "limit": benchmark_limit}
        self._loader = self._session = self._log = self._scores = None
        self._done: int | None = None  # step of the last validation
        self._shows_images = True

    def before_train(self, runner) -> None:
        """Opens data, benchmarks and panel, and repeats a validation that a signal interrupted."""
        if not self.data_paths and not self.records and not self._benchmarks:
            return
        again = runner.iter > 0 and self._is_due(runner, runner.iter) and self._done != runner.iter
        if self.data_paths:
            self._loader = self._open_data(runner)
        if self._benchmarks:
            sizes = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
            self._scores = ValidationScores(self._benchmarks, **self._benchmark_options, **sizes)
            for data_set in self._scores.data_sets:
                for each in data_set.left_out:
                    runner.logger.warning(f"left out of {data_set.name}: {each.message}")
        if self.records or self._benchmarks:
            self._session = open_session(runner)
        if self.records:
            self._log = PanelLog(runner.work_dir, self.records)
            if is_main_process():
                self._log.start(runner.iter if again else runner.iter + 1)
            barrier()
        if self.interval > runner.max_iters:
            runner.logger.info(
                f"val_interval={self.interval:,} is more than the {runner.max_iters:,} steps of the run, which is "
                "validated at its end only"
            )
        if again:
            self._validate(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Validates where it is time."""
        step = runner.iter + 1
        if (self._loader or self._session) and self._is_due(runner, step) and not requests.agreed:
            self._validate(runner, step)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds ``validated``, the step of the last validation, to what is saved."""
        if self._done is not None:
            checkpoint["validated"] = self._done

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Learns which step was validated."""
        self._done = checkpoint.get("validated")

    def _is_due(self, runner, step: int) -> bool:
        return step % self.interval == 0 or step == runner.max_iters

    def _open_data(self, runner):
        training = runner.train_dataloader
        if not isinstance(training.dataset, MultimodalDataset):
            raise SettingError(
                "val_data_paths",
                f"val_data_paths needs training data of MultimodalDataset, not {type(training.dataset).__name__}",
                "set val_data_paths = []",
            )
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
        began, network = time.perf_counter(), unwrap(runner.model)
        loss = scores = answers = None
        with _undisturbed(runner):
            if self._loader is not None:
                loss = validation_loss(network, self._loader, agree_to_stop)
            if self._scores is not None and not requests.agreed:
                scores = self._scores.measure(network, self._session, agree_to_stop)
            if self.records and not requests.agreed:
                answers = self._answer(network)
        if requests.agreed:
            return
        self._done = step
        seconds = time.perf_counter() - began
        if loss is not None:
            runner.visualizer.add_scalars(scalars(loss), step=step)
            runner.logger.info(f"validation after step {step:,} ({seconds:.1f} s): {describe(loss)}")
        if scores is not None:
            runner.visualizer.add_scalars(scores.scalars(), step=step)
            runner.logger.info(f"benchmarks after step {step:,}: {scores.describe()}")
        if answers is not None and is_main_process():
            self._log.append(step, answers)
            if hasattr(runner.visualizer, "add_answers"):
                runner.visualizer.add_answers(self.records, answers, step, with_images=self._shows_images)
                self._shows_images = False

    def _answer(self, network) -> list[str] | None:
        """Answers to the whole panel, on every rank; None where it was stopped.

        Ranks share the questions. Under ZeRO-3 all of them answer each one, because they gather parameters together.
        """
        together = any(map(is_partitioned, network.parameters()))
        ranks, rank = (1, 0) if together else (get_world_size(), get_rank())
        own: dict[int, str] = {}
        for start in range(0, len(self.records), ranks):
            if agree_to_stop():
                return None
            if start + rank < len(self.records):
                record = self.records[start + rank]
                with network.computing(self._session.device):
                    own[start + rank] = self._session.answers(
                        [(record.question, [record.image])], max_new_tokens=self.max_new_tokens
                    )[0]
        answers = {index: answer for part in all_gather_object(own) for index, answer in part.items()}
        return [answers[index] for index in range(len(self.records))]


@contextmanager
def _undisturbed(runner) -> Iterator[None]:
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
    lock = preprocessing.describe(dataset, pixels.mean.flatten().tolist(), pixels.std.flatten().tolist())
    rule, _ = preprocessing.choose(lock, template=dataset.sources[0].template.name)
    model = network.model
    model.template, model.conv_template = rule.template, get_conv_template(rule.template)
    model.system_message = model.conv_template.system_message
    return ChatSession(
        model,
        load_tokenizer(runner.cfg.model.base),
        min_tiles=rule.min_tiles,
        max_tiles=rule.max_tiles,
        use_thumbnail=rule.use_thumbnail,
        tile_sharing=dataset.budget.sharing,
    )


def scalars(loss: ValidationLoss) -> dict[str, float]:
    """What trackers get: ``val_loss`` and ``val_loss_by_dataset/NAME``."""
    found = {"val_loss": loss.mean} | {f"val_loss_by_dataset/{name}": mean for name, mean in loss.by_dataset().items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def describe(loss: ValidationLoss) -> str:
    """One line: the loss, that of each file where there are several, tokens, and what was left out."""
    parts = [f"{name} {mean:.4f}" for name, mean in loss.by_dataset().items()]
    files = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    left_out = ", ".join(f"{count} {reason}" for reason, count in loss.left_out.items())
    tokens = f"{sum(loss.tokens.values()):,} supervised tokens"
    return f"loss {loss.mean:.4f}{files} over {tokens}" + (f"; left out: {left_out}" if left_out else "")
