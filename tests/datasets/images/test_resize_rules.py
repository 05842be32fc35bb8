"""Which rule belongs to which Pillow, and that a model of another is named."""

import PIL

from xtuner_plugins.datasets.images.resize_rules import RULES, compare_resize_facts, resize_facts


def test_the_version_decides_and_a_model_trained_under_another_rule_is_named(monkeypatch):
    """The first version is pillow-simd's way to write it."""
    for rule, versions in zip(RULES, ("9.5.0.post2 11.3.0 12.1.1", "12.2.0 12.3.0", "13.0.0.dev0 14.1"), strict=True):
        for version in versions.split():
            monkeypatch.setattr(PIL, "__version__", version)
            assert resize_facts() == {"pillow_version": version, "resize_rule": rule}
            assert compare_resize_facts(resize_facts()) is None and compare_resize_facts({}) is None
    text = compare_resize_facts({"pillow_version": "12.2.0", "resize_rule": "vertical_first_if_tall"})
    assert "trained with Pillow 12.2.0" in text and "this is Pillow 14.1" in text and "pillow==12.2.0" in text
