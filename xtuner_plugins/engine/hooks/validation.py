"""Validation while training: the loss on data of its own, and questions that are answered and scored."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn
from torch.utils.data import DataLoader

from ...datasets import PlanSampler, PreferenceDataset, collate, collate_pairs
from ...evaluation.benchmarks import DataSet, open_data_sets
from ...evaluation.results import measure
from ...files import write_whole
from ...inference.batch_answers import answer_batch, plan_batches
from ...inference.questions import Unusable
from ...inference.session import ChatSession
from ...models.losses import supervised_per_sample
from ...weights import preprocessing
from ...weights.loader import is_partitioned, load_tokenizer
from ..run.steps import unwrap
from ..watch.errors import naming
from ..watch.stopping import agree_to_stop, requests
from .state import describe_live

# Settings of the training data alone: which records are taken, how often, and how images are changed at random. All
# others hold for validation, too.
OF_TRAINING = ("data_paths", "image_folders", "repeat_times", "dataset_settings", "reject_list", "jpeg_quality")


@HOOKS.register_module()
class ValidationHook(Hook):
    """Validates every ``interval`` optimizer steps and at the end; does nothing without data and benchmarks.

    Training isn't disturbed: the model goes back to training mode, no random number of a step is drawn, and the plan
    stays where it is. It runs before the checkpoint of the same step is saved, so a run that goes on from a checkpoint
    repeats no validation. One that a signal interrupts is left out.

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

    Attributes:
        dataset: The validation data; None without, and before a run begins.
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
        self._loader = self._session = self.dataset = None

    def before_train(self, runner) -> None:
        """Opens data and benchmarks."""
        if self.data_paths:
            self._loader = self._open_data(runner)
            self.dataset = self._loader.dataset
        if self._benchmarks:
            self._questions = open_data_sets(self._benchmarks, **self._benchmark_options)
            self._session = open_session(runner)
            for data_set in self._questions:
                for each in data_set.left_out:
                    runner.logger.warning(f"left out of {data_set.name}: {each.message}")

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

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Validates where it is time, unless a signal stops the run."""
        step = runner.iter + 1
        is_due = step % self.interval == 0 or step == runner.max_iters
        if not is_due or not (self._loader or self._session):
            return
        network, works, found = unwrap(runner.model), {}, []
        if self._loader:
            works["validation"] = partial(validation_loss, network, self._loader, agree_to_stop)
        if self._session:
            sizes = self.batch_size, self.max_new_tokens
            works["benchmarks"] = partial(answer_questions, self._questions, network, self._session, *sizes)
        with undisturbed(runner):
            for name, work in works.items():
                begun = time.perf_counter()
                found.append((name, work(), time.perf_counter() - begun))
                if requests.agreed:
                    return
        for name, each, seconds in found:
            runner.visualizer.add_scalars(each.scalars, step=step)
            runner.logger.info(f"{name} after step {step:,} ({seconds:.1f} s): {each.text}")
            if each.rows and is_main_process():
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in each.rows)
                path = Path(runner.work_dir, "validation", f"iter_{step}.jsonl")
                write_whole(path, lambda beside, text=text: beside.write_text(text, encoding="utf-8"))


class Found(NamedTuple):
    """What a validation found, over all ranks.

    Attributes:
        scalars: Figures by the names under which they are logged.
        text: The same in one line.
        rows: One per question: data set, id, images, question, expected and given answer, score; or why it is left out.
    """

    scalars: dict[str, float]
    text: str
    rows: Sequence[Mapping[str, Any]] = ()


def validation_dataset(
    training: Mapping[str, Any], data_paths: str | Sequence[str], image_folders: Any = None
) -> dict[str, Any]:
    """The config of the validation dataset: that of training, with other files."""
    own = {key: value for key, value in training.items() if key not in OF_TRAINING}
    return {**own, "data_paths": data_paths, "image_folders": image_folders}


@torch.no_grad()
def validation_loss(network: nn.Module, loader: DataLoader, should_stop: Callable[[], Any]) -> Found | None:
    """The mean loss of all supervised tokens, ``val_loss``, and of each file, ``val_loss_by_dataset/NAME``.

    Every rank takes as many batches as every other: where samples are missing, `PlanSampler` gives fillers, which have
    no supervised token. So each sample counts once, and under ZeRO-3 all ranks gather parameters together.

    Args:
        network: The `VisionLanguageModel`, without wrappers, in evaluation mode.
        loader: Batches of a `MultimodalDataset`, ordered by a `PlanSampler` that doesn't shuffle.
        should_stop: Asked before each batch; it has to say the same on every rank. Where it does, None is returned.
    """
    own = sums, tokens, left_out = Counter(), Counter(), Counter()
    for batch in loader:
        if should_stop():
            return None
        left_out.update(sample["dropped"] for sample in batch.pop("dropped", ()))
        for name, loss, count in zip(batch["datasets"], *losses_of_batch(network, batch), strict=False):
            sums[name] += loss
            tokens[name] += count
    sums, tokens, left_out = (sum(each, Counter()) for each in zip(*all_gather_object(own), strict=True))
    means = {name: sums[name] / tokens[name] for name in sorted(tokens) if name}
    count = sum(tokens.values())
    loss = sum(sums.values()) / count if count else float("nan")
    own = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    text = f"loss {loss:.4f}{f' ({own})' if len(means) > 1 else ''} over {count:,} supervised tokens"
    if left_out:
        text += f"; left out: {', '.join(f'{number} {reason}' for reason, number in left_out.items())}"
    scalars = {f"val_loss_by_dataset/{name}": mean for name, mean in means.items()}
    return Found({**scalars, "val_loss": loss} if count else {}, text)


def losses_of_batch(network: nn.Module, batch: dict) -> tuple[list[float], list[int]]:
    """Sum of cross entropy and supervised tokens of each sample of a collated batch; of a pack's padding the first."""
    with naming([batch]):
        found = network(**network.data_preprocessor(batch), mode="loss", mean_weight=None)["sample_losses"]
    return found.tolist(), supervised_per_sample(batch).tolist()


def answer_questions(
    data_sets: Sequence[DataSet],
    network: nn.Module,
    session: ChatSession,
    batch_size: int,
    max_new_tokens: int,
) -> Found | None:
    """Answers all questions and scores the answers, on every rank; figures are named ``val/DATASET/FIGURE``.

    Ranks share the batches. Under ZeRO-3 all of them answer each one, because they gather parameters together.

    Args:
        data_sets: From `open_data_sets`.
        network: The `VisionLanguageModel`, without wrappers.
        session: Over its weights.
        batch_size: Questions that a rank answers at a time.
        max_new_tokens: Length limit of an answer.

    Returns:
        None where a signal stops the run.
    """
    together = any(map(is_partitioned, network.parameters()))
    ranks, rank = (1, 0) if together else (get_world_size(), get_rank())
    questions = [each.asked(question) for each in data_sets for question in each.questions]
    batches, unusable = plan_batches(questions, session.lengths, batch_size)
    own = {question.id: reason for question, reason in unusable}
    for start in range(0, len(batches), ranks):
        if agree_to_stop():
            return None
        if start + rank < len(batches):
            with network.computing(session.model.device):
                found = answer_batch(session, batches[start + rank], {"max_new_tokens": max_new_tokens})
            own.update((question.id, answer) for question, answer in found)
    return _score(data_sets, {name: answer for part in all_gather_object(own) for name, answer in part.items()})


def _score(data_sets: Sequence[DataSet], answers: Mapping[str, str | Unusable]) -> Found:
    scalars, texts, rows = {}, [], []
    for each in data_sets:
        given = {question.id: answers[each.asked(question).id] for question in each.questions}
        usable = {name: answer for name, answer in given.items() if not isinstance(answer, Unusable)}
        found = measure(each, usable)
        scores = dict(zip(usable, found.scores, strict=True))
        for question in each.questions:
            row = {"dataset": each.name, "id": question.id, "images": question.images, "question": question.text}
            row |= {"expected": question.expected, "answer": usable.get(question.id), "score": scores.get(question.id)}
            rows.append(row | ({} if question.id in usable else {"left_out": given[question.id].message}))
        texts.append(f"{each.name} {len(found.questions):,} answers")
        if each.metric:
            scalars |= {f"val/{each.name}/{key}": value for key, value in found.figures.items()}
            if found.headline is not None:
                texts[-1] = f"{each.name} {each.metric.headline} {found.headline:.1f} of {len(found.questions):,}"
    left_out = sum(len(each.left_out) for each in data_sets) + sum("left_out" in row for row in rows)
    return Found(scalars, ", ".join(texts) + (f"; left out: {left_out:,}" if left_out else ""), rows)


@contextmanager
def undisturbed(runner) -> Iterator[None]:
    """Evaluation mode, without a trace in random generators."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        runner.model.eval()
        try:
            yield
        finally:
            runner.model.train()


def open_session(runner) -> ChatSession:
    """A session over the live model with the tiles and the template of an export.

    Of several templates among the training files, the first file's.
    """
    network, dataset = unwrap(runner.model), runner.train_dataloader.dataset
    rule, _ = preprocessing.choose(describe_live(runner), template=dataset.sources[0].template.name)
    model, tokenizer = network.model, load_tokenizer(runner.cfg.model.base)
    model.template, model.conv_template = rule.template, rule.conversation
    model.system_message = model.conv_template.system_message
    limits = {name: getattr(rule, name) for name in ("min_tiles", "max_tiles", "use_thumbnail")}
    return ChatSession(model, tokenizer, **limits)
