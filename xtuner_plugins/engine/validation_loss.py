"""The loss on validation data: the mean over all supervised tokens, of each file and of all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather_object
from torch import nn
from torch.utils.data import DataLoader

from ..models.losses import sum_over_ranks, supervised_per_sample

# Settings of the training data alone: which records are taken, how often, and how images are changed at random. All
# others hold for validation, too.
OF_TRAINING = ("data_paths", "image_folders", "repeat_times", "dataset_settings", "reject_list", "augment")


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

    @property
    def mean(self) -> float:
        """Over all supervised tokens; NaN without any."""
        total = sum(self.tokens.values())
        return sum(self.sums.values()) / total if total else float("nan")

    def by_dataset(self) -> dict[str, float]:
        """The mean of each file that has supervised tokens."""
        return {name: total / self.tokens[name] for name, total in self.sums.items() if self.tokens[name]}


@torch.no_grad()
def validation_loss(
    network: nn.Module, loader: DataLoader, should_stop: Callable[[], Any] = lambda: False
) -> ValidationLoss | None:
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
    kept: list[torch.Tensor] = []  # on the device until the end
    owners: list[int] = []  # index of each sample's file; -1 for fillers and padding
    tokens, left_out = [0] * len(names), Counter()
    for batch in loader:
        if should_stop():
            return None
        left_out.update(sample["dropped"] for sample in batch.pop("dropped", ()))
        losses = network(**network.data_preprocessor(batch), mode="loss", mean_weight=torch.ones((), device=device))
        kept.append(losses["sample_losses"])
        own = [names.index(name) if name else -1 for name in batch["datasets"]]
        owners += own + [-1] * (len(kept[-1]) - len(own))
        for owner, count in zip(own, supervised_per_sample(batch).tolist(), strict=False):
            if owner >= 0:
                tokens[owner] += count
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)  # the last one is of fillers and padding
    index = torch.tensor(owners, dtype=torch.int64, device=device) % len(sums)
    sums = sum_over_ranks(sums.index_add_(0, index, torch.cat(kept))).tolist()
    counts = sum_over_ranks(torch.tensor(tokens, device=device)).tolist()
    return ValidationLoss(
        dict(zip(names, sums, strict=False)), dict(zip(names, counts, strict=True)), _over_ranks(left_out)
    )


def _over_ranks(counts: Counter) -> dict[str, int]:
    return dict(sum(map(Counter, all_gather_object(dict(counts))), Counter()))
