import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.audit.looking import AskedFile, AskedFiles, PlainFiles, see
from xtuner_plugins.datasets.images import tiling


@pytest.fixture
def files(data_base, write_data, six_records, tmp_path):
    return dict(base=str(data_base), data_paths=write_data(six_records), image_folders=str(tmp_path / "images"))


@pytest.mark.parametrize("route", ["pillow", "torchvision"])
def test_what_is_seen_is_what_training_gets_without_tiles(files, route, monkeypatch):
    dataset = MultimodalDataset(**files, route=route)
    expected = {row: dataset.load(0, row) for row in (0, 2, 3, 5)}
    monkeypatch.setattr(tiling, "cut_tiles", None)  # nothing may cut
    for row, sample in expected.items():
        seen = see(dataset, 0, row)
        assert seen.sample["input_ids"].tolist() == sample["input_ids"].tolist()
        assert seen.sample["labels"].tolist() == sample["labels"].tolist()
        assert seen.sample["num_tiles"] == sample["num_tiles"] and len(seen.sample["tiles"]) == 0
        assert len(seen.images) == (0, 1, 1, 2)[[3, 0, 2, 5].index(row)]
    with pytest.raises(RecordError, match="none.png"):
        see(dataset, 0, 1)


def test_plain_files_have_the_standard_grid(files, make_image):
    plain = PlainFiles([files["data_paths"]], [files["image_folders"]])
    seen = see(plain, 0, 2)
    assert seen.images[0].grid == (3, 1, 1) and seen.sample["num_tiles"] == 4 and len(seen.sample["labels"]) == 0
    with pytest.raises(RecordError, match="data.jsonl:2: .*none.png"):
        see(plain, 0, 1)
    assert len(plain) == 6


def test_questions(tmp_path):
    Image.fromarray(np.zeros((90, 100, 3), np.uint8)).save(tmp_path / "a.png")
    questions = [("7", "What?", [str(tmp_path / "a.png")]), ("8", "Why?", [str(tmp_path / "gone.png")])]
    asked = AskedFiles([AskedFile("mme", "mme.tsv", questions)])
    seen = see(asked, 0, 0)
    assert seen.images[0].image.size == (100, 90) and seen.record.turns[0].text == "What?"
    assert asked.sources[0].source(0) == "mme.tsv#7" and len(asked.sources[0].index) == 2
    with pytest.raises(RecordError, match="mme.tsv#8: .*gone.png"):
        see(asked, 0, 1)
