"""Which rule belongs to which Pillow, and that the installed Pillow keeps to its rule."""

import numpy as np
import PIL
from PIL import Image

from xtuner_plugins.datasets.images.resize_rules import RULES, compare_resize_facts, resize_facts, resize_rule

HORIZONTAL, IF_TALL, IF_SHRINKS_MORE = RULES


def test_the_version_decides_and_the_rules_tip_where_they_were_seen_to(monkeypatch):
    """The first version is pillow-simd's way to write it."""
    versions = {HORIZONTAL: "9.5.0.post2 11.3.0 12.1.1", IF_TALL: "12.2.0 12.3.0", IF_SHRINKS_MORE: "13.0.0.dev0 14.1"}
    for rule, version in ((rule, version) for rule, each in versions.items() for version in each.split()):
        monkeypatch.setattr(PIL, "__version__", version)
        assert resize_rule() is rule
    tips = {(600, 900, 448, 448): {IF_SHRINKS_MORE}, (10, 1001, 10, 1000): {IF_TALL, IF_SHRINKS_MORE}}
    tips |= {(20, 31, 10, 10): {IF_SHRINKS_MORE}, (10, 1000, 10, 999): {IF_SHRINKS_MORE}}
    for sizes in ((20, 30, 10, 10), (10, 20, 40, 30), (10, 1001, 10, 1001)):
        tips[sizes] = set()
    for sizes, first in tips.items():
        assert {rule for rule in RULES if rule.vertical_first(*sizes)} == first, sizes


def test_the_installed_pillow_runs_its_passes_in_the_order_of_its_rule():
    """A pass along one axis alone, rounded to bytes, then the other, gives the pixels of both at once."""
    new = 44, 45
    for size in [(60, 90), (60, 6060), (61, 150), (150, 61), (20, 2001)]:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
        passes = [(new[0], size[1]), (size[0], new[1]), new]  # horizontal first, vertical first, both at once
        pixels = [image.resize(first, Image.BICUBIC).resize(new, Image.BICUBIC).tobytes() for first in passes]
        assert pixels[0] != pixels[1]  # else the order couldn't be seen
        assert pixels[2] == pixels[resize_rule().vertical_first(*size, *new)]


def test_a_model_trained_under_another_rule_is_named(monkeypatch):
    here, trained = resize_facts(), {"pillow_version": "12.2.0", "resize_rule": "vertical_first_if_tall"}
    assert here == {"pillow_version": PIL.__version__, "resize_rule": resize_rule().name}
    assert compare_resize_facts(here) is None and compare_resize_facts({}) is None
    monkeypatch.setattr(PIL, "__version__", "12.3.0")
    assert compare_resize_facts(trained) is None
    monkeypatch.setattr(PIL, "__version__", "13.0.0")
    text = compare_resize_facts(trained)
    assert "trained with Pillow 12.2.0" in text and "this is Pillow 13.0.0" in text and "pillow==12.2.0" in text
