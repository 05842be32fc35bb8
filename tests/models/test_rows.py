"""Batches of all forms become rows; and tiles become pixels."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from xtuner_plugins.datasets import ledger
from xtuner_plugins.datasets.collate import collate
from xtuner_plugins.datasets.left_out import dropped_sample
from xtuner_plugins.errors import RecordError
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.models.preprocessor import TilePreprocessor
from xtuner_plugins.models.rows import check_counts, make_row

IMAGE = 7
# Two samples of five and three tokens; the second has no image.
PADDED = {
    "input_ids": torch.tensor([[1, 7, 7, 2, 3], [4, 5, 6, 0, 0]]),
    "labels": torch.tensor([[-100, -100, -100, 2, 3], [4, 5, -100, 9, 9]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]) > 0,
}
# The same in one row, with two tokens of padding.
PACKED = {
    "input_ids": torch.tensor([[1, 7, 7, 2, 3, 4, 5, 6, 0, 0]]),
    "labels": torch.tensor([[-100, -100, -100, 2, 3, -100, 5, -100, -100, -100]]),
    "cu_seqlens": torch.tensor([0, 5, 8], dtype=torch.int32),
}


def listed(row):
    """The numbers of a row's tensors."""
    return {name: value.tolist() for name, value in row._asdict().items() if isinstance(value, torch.Tensor)}


def test_a_padded_batch_and_a_pack_mean_the_same():
    """The first token of a sample is predicted by nothing, not by the sample before it either; padding has no label.

    A target weighs what its sample weighs. Without labels one of weight 0 stands in, which nobody owns.
    """
    same = dict(image_positions=[1, 2], predicting=[2, 3, 5], targets=[2, 3, 5], owners=[0, 0, 1])
    for batch, ids, positions, bounds in (
        (PADDED, [1, 7, 7, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 0, 1, 2], (0, 5, 8)),
        (PACKED, [1, 7, 7, 2, 3, 4, 5, 6, 0, 0], [0, 1, 2, 3, 4, 0, 1, 2, 0, 1], (0, 5, 8, 10)),
    ):
        row = make_row({**batch, "loss_weights": torch.tensor([0.5, 4.0])}, IMAGE)
        expected = same | dict(input_ids=[ids], position_ids=[positions])
        assert listed(row) == expected | {"weights": [0.5, 0.5, 4.0]} and listed(make_row(batch, IMAGE)) == expected
        assert row.segments.bounds == bounds and row.segments.longest == 5
        assert row.segments.cu_seqlens.tolist() == list(bounds) and row.segments.cu_seqlens.dtype == torch.int32
    stand_in = dict(weights=[0.0], predicting=[0], targets=[0], owners=[])
    for batch in ({"input_ids": torch.tensor([[3]])}, {**PADDED, "labels": torch.full((2, 5), -100)}):
        assert listed(make_row(batch, IMAGE)).items() >= stand_in.items()


def test_what_does_not_fit_is_refused():
    row = make_row(PADDED, IMAGE)
    check_counts(row, [1, 0], 2, ["a:1", "a:2"])
    with pytest.raises(ValueError, match=r"^2 image tokens in the text, but 4 image features \(2 .* at fault: a:1$"):
        check_counts(row, [2, 0], 2, ["a:1", "a:2"])
    with pytest.raises(ValueError, match="at fault: a:1, a:2$"):  # the sums agree
        check_counts(row, [0, 1], 2, ["a:1", "a:2"])


def batch_of(tiles):
    ids = torch.zeros(1, 4, dtype=torch.long)
    return {"tiles": tiles, "input_ids": ids, "num_tiles": torch.tensor([len(tiles)]), "sources": ["a.jsonl:1"]}


def test_normalization_equals_totensor_and_normalize():
    """In float32: DeepSpeed casts the whole model, and a mean rounded to bfloat16 shifts every pixel."""
    tiles = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    batch, preprocessor = batch_of(tiles), TilePreprocessor()
    inputs = preprocessor(batch)
    published = Compose([ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    theirs = torch.stack([published(Image.fromarray(tile.permute(1, 2, 0).numpy())) for tile in tiles])
    assert torch.equal(inputs["pixel_values"], theirs)
    assert torch.equal(TilePreprocessor().bfloat16().normalize(tiles), theirs)
    assert list(inputs) == ["row", "pixel_values"] and "tiles" in batch and inputs["row"].segments.bounds == (0, 4)
    assert preprocessor(batch_of(tiles[:0]))["pixel_values"].shape == (0, 3, 28, 28)
    with pytest.raises(ValueError, match="uint8"):
        preprocessor(batch_of(theirs))
    preprocessor.image_token, preprocessor.tokens_per_tile = 7, 4
    with pytest.raises(ValueError, match=r"0 image tokens in the text, but 8 image features .* at fault: a.jsonl:1$"):
        preprocessor(batch)


def test_samples_left_out_are_logged_without_a_ledger(monkeypatch):
    said, preprocessor = [], TilePreprocessor()
    monkeypatch.setattr(ledger, "print_log", lambda text, *_: said.append(text))
    for reason in ("image_missing", "too_long"):
        batch = collate([dropped_sample(RecordError(reason, "words", place="f:7"), "f:7", 28)])
        assert "dropped" not in preprocessor(batch)
    assert "(2 so far), too_long: f:7: words" in said[1] and "LedgerHook" in said[1]
