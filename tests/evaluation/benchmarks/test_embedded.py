import base64

import pytest

from xtuner_plugins.datasets.errors import RecordError
from xtuner_plugins.evaluation.benchmarks.embedded import EmbeddedImages, is_reference


def test_a_short_cell_refers_to_a_row():
    assert is_reference("x" * 64) and not is_reference("x" * 65)


def test_the_first_image_of_an_index_counts(tmp_path, png):
    images = EmbeddedImages(tmp_path / "deep" / "cache", tmp_path / "a.tsv")
    first = images.write(base64.b64encode(png(1)).decode(), "1", "a.tsv:2")
    images.write(base64.b64encode(png(2)).decode(), "1", "a.tsv:3")
    assert images.of_row("1") == first and images.of_row("2") is None
    assert open(first, "rb").read() == png(1)


@pytest.mark.parametrize("cell", ["é" * 80, "QUJD" * 20 + "=", "A" * 81])
def test_what_is_no_image_is_named(cell, tmp_path):
    with pytest.raises(RecordError, match="^a.tsv:2: its image (isn't base64|can't be read); download the file again$"):
        EmbeddedImages(tmp_path, tmp_path / "a.tsv").write(cell, None, "a.tsv:2")
    assert not list(tmp_path.rglob("*.*"))
