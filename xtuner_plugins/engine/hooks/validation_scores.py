"""What a validation finds: the loss on data of its own, and the answers to questions with their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import nn
from torch.utils.data import DataLoader

from ...evaluation.benchmarks import DataSet
from ...evaluation.results import measure
from ...inference.batch_answers import answer_batch, plan_batches
from ...inference.questions import Unusable
from ...inference.session import ChatSession
from ...models.losses import supervised_per_sample
from ...weights.loader import is_partitioned
from ..watch.errors import naming

# Settings of the training data alone: which records are taken, how often, and how images are changed at random. All
# others hold for validation, too.
OF_TRAINING = ("data_paths", "image_folders", "repeat_times", "dataset_settings", "reject_list", "jpeg_quality")


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
    mean_weight = torch.ones((), device=next(network.parameters()).device)
    own = sums, tokens, left_out = Counter(), Counter(), Counter()
    for batch in loader:
        if should_stop():
            return None
        left_out.update(sample["dropped"] for sample in batch.pop("dropped", ()))
        with naming([batch]):
            losses = network(**network.data_preprocessor(batch), mode="loss", mean_weight=mean_weight)
        counts = supervised_per_sample(batch).tolist()
        for name, loss, count in zip(batch["datasets"], losses["sample_losses"].tolist(), counts, strict=False):
            sums[name] += loss
            tokens[name] += count
    sums, tokens, left_out = (sum(each, Counter()) for each in zip(*all_gather_object(own), strict=True))
    means = {name: sums[name] / tokens[name] for name in sorted(tokens) if name}
    count = sum(tokens.values())
    loss = sum(sums.values()) / count if count else float("nan")
    text = f"loss {loss:.4f}"
    if len(means) > 1:
        text += f" ({', '.join(f'{name} {mean:.4f}' for name, mean in means.items())})"
    text += f" over {count:,} supervised tokens"
    if left_out:
        text += f"; left out: {', '.join(f'{number} {reason}' for reason, number in left_out.items())}"
    scalars = {f"val_loss_by_dataset/{name}": mean for name, mean in means.items()}
    return Found({**scalars, "val_loss": loss} if count else {}, text)


def answer_questions(
    data_sets: Sequence[DataSet],
    network: nn.Module,
    session: ChatSession,
    *,
    batch_size: int,
    max_new_tokens: int,
    should_stop: Callable[[], Any],
) -> Found | None:
    """Answers all questions and scores the answers, on every rank; figures are named ``val/DATASET/FIGURE``.

    Ranks share the batches. Under ZeRO-3 all of them answer each one, because they gather parameters together.

    Args:
        data_sets: From `open_data_sets`.
        network: The `VisionLanguageModel`, without wrappers.
        session: Over its weights.
        batch_size: Questions that a rank answers at a time.
        max_new_tokens: Length limit of an answer.
        should_stop: As for `validation_loss`.
    """
    together = any(map(is_partitioned, network.parameters()))
    ranks, rank = (1, 0) if together else (get_world_size(), get_rank())
    questions = [each.asked(question) for each in data_sets for question in each.questions]
    batches, unusable = plan_batches(questions, session.lengths, batch_size)
    own = {question.id: reason for question, reason in unusable}
    for start in range(0, len(batches), ranks):
        if should_stop():
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
        if each.metric and found.headline is not None:
            texts.append(f"{each.name} {each.metric.headline} {found.headline:.1f} of {len(found.questions):,}")
        else:
            texts.append(f"{each.name} {len(found.questions):,} answers")
        if each.metric:
            scalars |= {f"val/{each.name}/{key}": value for key, value in found.figures.items()}
    left_out = sum(len(each.left_out) for each in data_sets) + sum("left_out" in row for row in rows)
    return Found(scalars, ", ".join(texts) + (f"; left out: {left_out:,}" if left_out else ""), rows)
