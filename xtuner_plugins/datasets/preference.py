"""The dataset of preference pairs: a prompt, a chosen and a rejected answer in one sample."""

from collections.abc import Sequence

import torch
from mmengine.registry import DATASETS, FUNCTIONS

from ..errors import SettingError
from ..hub.constants import IGNORE_INDEX
from .collate import kept_samples, with_images
from .dataset import MultimodalDataset
from .left_out import FILLER, filler_sample
from .records.pairs import parse_pair

SEGMENTS_PER_PAIR = 3  # prompt, chosen, rejected
FILLER_TOKENS = 2  # supervised ones of a filler, one per answer


@DATASETS.register_module()
class PreferenceDataset(MultimodalDataset):
    """Preference pairs about images (`records.pairs` describes every form), as mixtures like any other.

    A pair is one sample: its prompt with the images stands once, both answers follow. ``dataset[i]`` is that of
    `MultimodalDataset` with

        input_ids: int64 `[s]`, prompt, chosen and rejected answer behind each other.
        labels: int64 `[s]`, -100 in the prompt.
        branches: the tokens of the three.
        reference: float32 `[K]`, the reference's log probabilities of the answers' supervised tokens; only where
            `reference` is set.

    Args:
        base, data_paths, and so on: as `MultimodalDataset`. A pair is never truncated: a cut answer would be compared
            with a whole one. One that doesn't fit is left out, with an entry in the ledger.

    Attributes:
        reference: `ReferenceLogProbs`, or None; set it before workers start.

    Raises:
        SettingError: as `MultimodalDataset`, or a `loss_reduction`.
    """

    parse = staticmethod(parse_pair)
    may_cut = False
    reference = None

    def __init__(self, *args, **settings):
        if settings.get("loss_reduction", "token") != "token":
            said = "the loss of preference pairs is a mean over pairs"
            raise SettingError("loss_reduction", said, "leave out loss_reduction")
        super().__init__(*args, **settings)

    def load(self, number: int, row: int, *args, **options) -> dict:
        """As `MultimodalDataset.load`."""
        sample = super().load(number, row, *args, **options)
        if self.reference is not None:
            count = int((sample["labels"] != IGNORE_INDEX).sum())
            values = self.reference.of(number, row, count, sample["source"])
            sample["reference"] = torch.from_numpy(values.copy())
        return sample


@FUNCTIONS.register_module()
def collate_pairs(samples: Sequence[dict]) -> dict:
    """Concatenate preference pairs into one row, in which each prompt stands once.

        input_ids     p p p c c r | p p c r r
        position_ids  0 1 2 3 4 3 | 0 1 2 2 3      (of the row that the model makes)
        cu_seqlens    0     3   5   6   8 9  11
        follows       -1    0   0   -1  3 3

    Args:
        samples: what `PreferenceDataset` returns.

    Returns:
        dict with
        input_ids, labels, attention_mask: `[1, S]`, as `collate_packed`.
        cu_seqlens: int32 `[3 P + 1]`, boundaries of prompts and answers.
        follows: int64 `[3 P]`, the segment that a segment continues, -1 for a prompt.
        reference: float32 `[K]`, where samples have it.
        tiles, num_tiles `[P]`, sources, datasets and so on: as `collate`, one entry per pair. A filler, of weight 0, is
        one too.

    Raises:
        ValueError: A sample that is no pair.
    """
    filler = filler_pair(samples[0]["tiles"].shape[-1])
    kept = [filler if sample["source"] == FILLER else sample for sample in kept_samples(samples)]
    for sample in kept:
        if "branches" not in sample:
            raise ValueError(f"{sample['source']}: collate_pairs takes samples of PreferenceDataset; this is no pair")
    lengths = torch.tensor([length for sample in kept for length in sample["branches"]])
    firsts = torch.arange(0, len(lengths), SEGMENTS_PER_PAIR)
    batch = {
        "input_ids": torch.cat([sample["input_ids"] for sample in kept])[None],
        "labels": torch.cat([sample["labels"] for sample in kept])[None],
        "cu_seqlens": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int(),
        "follows": torch.stack([torch.full_like(firsts, -1), firsts, firsts], dim=1).flatten(),
    }
    batch["attention_mask"] = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if all("reference" in sample for sample in kept):
        batch["reference"] = torch.cat([sample["reference"] for sample in kept])
    return with_images(batch, samples, kept)


def filler_pair(tile_size: int) -> dict:
    """What stands where no pair is left for a rank: one token each, of weight 0."""
    ids = torch.zeros(SEGMENTS_PER_PAIR, dtype=torch.int64)
    labels = torch.tensor([IGNORE_INDEX, 0, 0])
    pair = {"input_ids": ids, "labels": labels, "branches": (1, 1, 1), "loss_weight": 0.0}
    return {**filler_sample(tile_size), **pair, "reference": torch.zeros(FILLER_TOKENS)}
