"""Which rule belongs to which Pillow, and that the installed Pillow keeps to its rule."""

import numpy as np
import PIL
from PIL import Image

from xtuner_plugins.datasets.images.resize_rules import RULES, compare_resize_facts, resize_facts

# Whether each rule runs the vertical pass first, of (width, height, new width, new height)
VERTICAL_FIRST = {
    "vertical_first_if_height_shrinks_more": lambda w, h, new_w, new_h: h > new_h and h - new_h > 2 * (w - new_w),
    "vertical_first_if_tall": lambda w, h, new_w, new_h: h > 100 * w and h > new_h,
    "horizontal_first": lambda w, h, new_w, new_h: False,
}


def test_the_installed_pillow_runs_its_passes_in_the_order_of_its_rule():
    """A pass along one axis alone, rounded to bytes, then the other, gives the pixels of both at once."""
    new, vertical_first = (44, 45), VERTICAL_FIRST[resize_facts()["resize_rule"]]
    for size in [(60, 90), (60, 6060), (61, 150), (150, 61), (20, 2001)]:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
        passes = [(new[0], size[1]), (size[0], new[1]), new]  # horizontal first, vertical first, both at once
        pixels = [image.resize(first, Image.BICUBIC).resize(new, Image.BICUBIC).tobytes() for first in passes]
        assert pixels[0] != pixels[1]  # else the order couldn't be seen
        assert pixels[2] == pixels[vertical_first(*size, *new)]


def test_the_version_decides_and_a_model_trained_under_another_rule_is_named(monkeypatch):
    """The first version is pillow-simd's way to write it."""
    trained = {"pillow_version": "12.2.0", "resize_rule": "vertical_first_if_tall"}
    for rule, versions in zip(RULES.values(), ("13.0.0.dev0 14.1", "12.2.0 12.3.0", "9.5.0.post2 12.1.1"), strict=True):
        for version in versions.split():
            monkeypatch.setattr(PIL, "__version__", version)
            assert (here := resize_facts()) == {"pillow_version": version, "resize_rule": rule}
            assert compare_resize_facts(here) is compare_resize_facts({}) is None
            text = compare_resize_facts(trained) or ""
            words = ("trained with Pillow 12.2.0", f"this is Pillow {version}", "pillow==12.2.0")
            assert [word in text for word in words] == [rule != trained["resize_rule"]] * 3
