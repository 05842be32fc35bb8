import pytest

from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.images.media import Blob, ImageFolder
from xtuner_plugins.datasets.records.embedded import EmbeddedImages, embedded_name


class Records:
    """Rows whose first column holds bytes, and whose second holds names."""

    def embedded(self, row, column, number):
        return Blob(f"{row}:{number}", b"bytes") if column == 0 else f"{row}-{number}.png"


@pytest.fixture
def images(tmp_path):
    return EmbeddedImages(Records(), ImageFolder(tmp_path))


def test_names_lead_to_bytes_to_names_and_to_the_folder(images, tmp_path):
    assert images.resolve(embedded_name(3, 1)).name == "3:1"
    assert images.resolve(embedded_name(3, 1, column=1)) == str(tmp_path / "3-1.png")
    assert images.resolve("a/b.png") == str(tmp_path / "a" / "b.png")
    assert images.key() == ImageFolder(tmp_path).key()


@pytest.mark.parametrize(
    "name", ["row://", "row://1/0", "row://1/0/-1", "row://1/0/0/0", "row://1/0/0\n", "../x", None, 7]
)
def test_other_names_are_checked_as_those_of_files(images, name):
    with pytest.raises(MediaError):
        images.resolve(name)
