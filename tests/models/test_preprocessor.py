import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from xtuner_plugins.datasets import ledger
from xtuner_plugins.datasets.collate import collate
from xtuner_plugins.datasets.ledger import TooManyBadSamples
from xtuner_plugins.datasets.left_out import dropped_sample
from xtuner_plugins.errors import RecordError
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.models.preprocessor import TilePreprocessor


def batch_of(tiles):
    ids = torch.zeros(1, 4, dtype=torch.long)
    return {"tiles": tiles, "input_ids": ids, "num_tiles": torch.tensor([len(tiles)]), "sources": ["a.jsonl:1"]}


def test_normalization_equals_totensor_and_normalize():
    """In float32: DeepSpeed casts the whole model, and a mean rounded to bfloat16 shifts every pixel."""
    tiles = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    ours = TilePreprocessor()(batch_of(tiles))["pixel_values"]
    published = Compose([ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    theirs = torch.stack([published(Image.fromarray(tile.permute(1, 2, 0).numpy())) for tile in tiles])
    assert torch.equal(ours, theirs) and torch.equal(TilePreprocessor().bfloat16().normalize(tiles), theirs)


def test_a_batch_becomes_the_inputs_of_the_model_and_is_not_modified():
    batch = batch_of(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    out = TilePreprocessor()(batch)
    assert list(out) == ["row", "pixel_values"] and "tiles" in batch
    assert out["row"].input_ids.tolist() == [[0, 0, 0, 0]] and out["row"].segments.bounds == (0, 4)


def test_tiles_without_their_image_tokens_are_refused():
    preprocessor = TilePreprocessor()
    preprocessor.image_token, preprocessor.tokens_per_tile = 7, 4
    with pytest.raises(ValueError, match=r"0 image tokens in the text, but 4 image features .* at fault: a.jsonl:1$"):
        preprocessor(batch_of(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))


def test_what_can_not_be_normalized_is_refused():
    assert TilePreprocessor()(batch_of(torch.zeros(0, 3, 28, 28, dtype=torch.uint8)))["pixel_values"].shape[0] == 0
    with pytest.raises(ValueError, match="uint8"):
        TilePreprocessor()(batch_of(torch.zeros(1, 3, 4, 4)))
    for std in ((0, 1, 1), (1, 1)):
        with pytest.raises(ValueError, match="std"):
            TilePreprocessor(std=std)


def test_samples_left_out_are_counted_without_a_ledger(caplog, monkeypatch):
    """A run without `LedgerHook`: the model gets none of it, the log has each, and the ceiling holds."""
    monkeypatch.setattr(ledger, "MAX_BAD_SAMPLES", 1)

    def batch(reason):
        return collate([dropped_sample(RecordError(reason, "words", place="f:7"), "f:7", 28)])

    preprocessor, logger = TilePreprocessor(), MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    for reason in ("image_missing", "too_long"):
        assert "dropped" not in preprocessor(batch(reason))
    logger.removeHandler(caplog.handler)
    assert "(2 so far), too_long: f:7: words" in caplog.text and "LedgerHook" in caplog.text
    with pytest.raises(TooManyBadSamples, match="2 samples can't be used, .* beyond 1 per"):
        preprocessor(batch("json"))
