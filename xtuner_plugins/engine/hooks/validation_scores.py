"""What a validation finds: the loss on data of its own, and the answers to questions with their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import nn
from torch.utils.data import DataLoader

from ...evaluation.benchmarks import DataSet
from ...evaluation.results import Measured, measure
from ...inference.batch_answers import answer_batch, lengths_of, plan_batches
from ...inference.questions import Unusable
from ...inference.session import ChatSession
from ...models.losses import sum_over_ranks, supervised_per_sample
from ...weights.partition import is_partitioned
from ..watch.errors import naming

# Settings of the training data alone: which records are taken, how often, and how images are changed at random. All
# others hold for validation, too.
OF_TRAINING = ("data_paths", "image_folders", "repeat_times", "dataset_settings", "reject_list", "jpeg_quality")


def validation_dataset(
    training: Mapping[str, Any], data_paths: str | Sequence[str], image_folders: Any = None
) -> dict[str, Any]:
    """The config of the validation dataset: that of training, with other files."""
    own = {key: value for key, value in training.items() if key not in OF_TRAINING}
    return {**own, "data_paths": data_paths, "image_folders": image_folders}


@dataclass(frozen=True)
class ValidationLoss:
    """What a pass over the validation data found, over all ranks.

    Attributes:
        sums: Sum of cross entropy over the supervised tokens of each file, by its name.
        tokens: Supervised tokens of each file.
        left_out: Samples without a loss, by reason.
    """

    sums: dict[str, float]
    tokens: dict[str, int]
    left_out: dict[str, int]

    def means(self) -> dict[str, float]:
        """The mean over all supervised tokens, ``val_loss``, and of each file, ``val_loss_by_dataset/NAME``."""
        named = {f"val_loss_by_dataset/{name}": (self.sums[name], count) for name, count in self.tokens.items()}
        named["val_loss"] = sum(self.sums.values()), sum(self.tokens.values())
        return {name: loss / count for name, (loss, count) in named.items() if count}

    def describe(self) -> str:
        """One line: the loss, that of each file where there are several, tokens, and what was left out."""
        means = self.means()
        loss = means.pop("val_loss", float("nan"))
        parts = ", ".join(f"{name.partition('/')[2]} {mean:.4f}" for name, mean in means.items())
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        line = f"loss {loss:.4f}{f' ({parts})' * (len(means) > 1)} over {sum(self.tokens.values()):,} supervised tokens"
        return line + f"; left out: {left_out}" * bool(left_out)


@torch.no_grad()
def validation_loss(network: nn.Module, loader: DataLoader, should_stop: Callable[[], Any]) -> ValidationLoss | None:
    """Runs the model over validation data.

    Every rank takes as many batches as every other: where samples are missing, `PlanSampler` gives fillers, which have
    no supervised token. So each sample counts once, and under ZeRO-3 all ranks gather parameters together.

    Args:
        network: The `VisionLanguageModel`, without wrappers, in evaluation mode.
        loader: Batches of a `MultimodalDataset`, ordered by a `PlanSampler` that doesn't shuffle.
        should_stop: Asked before each batch; it has to say the same on every rank.

    Returns:
        The loss; None where it was stopped.
    """
    device = next(network.parameters()).device
    names = [source.name for source in loader.dataset.sources]
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)  # the last one is of fillers and padding
    tokens, left_out = torch.zeros(len(names) + 1, dtype=torch.int64, device=device), Counter()
    for batch in loader:
        if should_stop():
            return None
        left_out.update(sample["dropped"] for sample in batch.pop("dropped", ()))
        with naming([batch]):
            losses = network(**network.data_preprocessor(batch), mode="loss", mean_weight=torch.ones((), device=device))
        owners = [names.index(name) if name else len(names) for name in batch["datasets"]]
        owners += [len(names)] * (len(losses["sample_losses"]) - len(owners))
        index = torch.tensor(owners, device=device)
        sums.index_add_(0, index, losses["sample_losses"])
        counts = supervised_per_sample(batch).to(device)
        tokens.index_add_(0, index[: len(counts)], counts)
    by_name = (dict(zip(names, sum_over_ranks(each).tolist(), strict=False)) for each in (sums, tokens))
    return ValidationLoss(*by_name, dict(sum(map(Counter, all_gather_object(dict(left_out))), Counter())))


@dataclass(frozen=True)
class Scores:
    """The answers of one validation and what they are worth.

    Attributes:
        measured: Of each data set; without a metric where the file has no answers.
        rows: One per question: data set, id, images, question, expected and given answer, score; or why it is left out.
        left_out: Number of questions that could not be asked.
    """

    measured: Sequence[Measured]
    rows: Sequence[Mapping[str, Any]]
    left_out: int

    def scalars(self) -> dict[str, float]:
        """``val/DATASET/FIGURE``, such as ``val/own/accuracy``."""
        scored = [each for each in self.measured if each.metric]
        return {f"val/{each.name}/{key}": value for each in scored for key, value in each.figures.items()}

    def describe(self) -> str:
        """One line: the headline of each data set, or the number of its answers."""
        parts = []
        for each in self.measured:
            if each.metric and each.headline is not None:
                parts.append(f"{each.name} {each.metric.headline} {each.headline:.1f} of {len(each.items):,}")
            else:
                parts.append(f"{each.name} {len(each.items):,} answers")
        return ", ".join(parts) + (f"; left out: {self.left_out:,}" if self.left_out else "")


def answer_questions(
    data_sets: Sequence[DataSet],
    network: nn.Module,
    session: ChatSession,
    *,
    batch_size: int,
    max_new_tokens: int,
    should_stop: Callable[[], Any],
) -> Scores | None:
    """Answers all questions and scores the answers, on every rank.

    Ranks share the batches. Under ZeRO-3 all of them answer each one, because they gather parameters together.

    Args:
        data_sets: From `open_data_sets`.
        network: The `VisionLanguageModel`, without wrappers.
        session: Over its weights.
        batch_size: Questions that a rank answers at a time.
        max_new_tokens: Length limit of an answer.
        should_stop: As for `validation_loss`.

    Returns:
        The scores; None where it was stopped.
    """
    together = any(map(is_partitioned, network.parameters()))
    ranks, rank = (1, 0) if together else (get_world_size(), get_rank())
    questions = [each.asked(item) for each in data_sets for item in each.items]
    batches, unusable = plan_batches(questions, lengths_of(session), batch_size)
    own = {question.id: reason for question, reason in unusable}
    for start in range(0, len(batches), ranks):
        if should_stop():
            return None
        if start + rank < len(batches):
            with network.computing(session.model.device):
                found = answer_batch(session, batches[start + rank], {"max_new_tokens": max_new_tokens})
            own.update((question.id, answer) for question, answer in found)
    return _score(data_sets, {name: answer for part in all_gather_object(own) for name, answer in part.items()})


def _score(data_sets: Sequence[DataSet], answers: Mapping[str, str | Unusable]) -> Scores:
    measured, rows = [], []
    for each in data_sets:
        given = {item.question.id: answers[each.asked(item).id] for item in each.items}
        texts = {name: answer for name, answer in given.items() if not isinstance(answer, Unusable)}
        found = measure(each.name, each.metric, each.items, texts)
        scores = dict(zip(texts, found.scores, strict=True))
        for item in each.items:
            question, answer = item.question, given[item.question.id]
            row = {"dataset": each.name, "id": question.id, "images": question.images, "question": question.text}
            row |= {"expected": item.expected, "answer": texts.get(question.id), "score": scores.get(question.id)}
            rows.append(row | ({} if question.id in texts else {"left_out": answer.message}))
        measured.append(found)
    left_out = sum(len(each.left_out) for each in data_sets) + sum("left_out" in row for row in rows)
    return Scores(measured, rows, left_out)
