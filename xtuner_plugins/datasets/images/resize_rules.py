"""Which of its two passes Pillow's resize runs first: three rules, chosen by Pillow's version.

Pixels are rounded to bytes between the passes, so their order matters: a page of 600x900 resized to 448x448 differs by
a few levels between Pillow 12 and 13. The rules were found by comparing both orders with real releases over thousands
of sizes (docs/measurements.md).
"""

import PIL
from packaging.version import Version

RULES = {  # the first Pillow release with each, newest first -> its name in checkpoints and messages
    (13, 0): "vertical_first_if_height_shrinks_more",  # by more than twice as many pixels as the width
    (12, 2): "vertical_first_if_tall",  # more than 100 times as high as wide, and the height shrinks
    (0, 0): "horizontal_first",
}


def resize_facts() -> dict[str, str]:
    """Pillow's version and its resize rule, to be kept with a model; newer releases have the last known rule."""
    release = Version(PIL.__version__).release[:2]
    rule = next(name for since, name in RULES.items() if release >= since)
    return {"pillow_version": PIL.__version__, "resize_rule": rule}


def compare_resize_facts(trained: dict) -> str | None:
    """A warning where the installed Pillow resizes by another rule than in training; None where it doesn't or may not.

    Args:
        trained: result of `resize_facts` in training.
    """
    rule, here = trained.get("resize_rule"), resize_facts()
    if rule is None or rule == here["resize_rule"]:
        return None
    version = trained.get("pillow_version", "(unknown)")
    return (
        f"the model was trained with Pillow {version} (resize rule {rule}), this is Pillow {here['pillow_version']} "
        f"({here['resize_rule']}): pixels of some sizes differ by a few levels; install pillow=={version}"
    )
