import pytest

from tests.vision_towers import write_tower
from xtuner_plugins.export.base.build import build_base


@pytest.fixture(scope="module")
def encoder_base(request, toy_base, toy_parts, tmp_path_factory):
    """A base with this kind of encoder; InternViT uses all of its blocks, CLIP and SigLIP the first 2 of 3."""
    if request.param == "intern_vit":
        return str(toy_base)
    folder = tmp_path_factory.mktemp(request.param)
    write_tower(folder / "tower", request.param)
    build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    return str(folder / "base")
