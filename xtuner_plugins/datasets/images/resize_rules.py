"""Which of its two passes Pillow's resize runs first: three rules, chosen by Pillow's version.

Pixels are rounded to bytes between the passes, so their order matters: a page of 600x900 resized to 448x448 differs by
a few levels between Pillow 12 and 13 (docs/measurements.md).
"""

import PIL
from packaging.version import Version

# Names in checkpoints and messages -> the first Pillow release with the rule; oldest first
RULES = {
    "horizontal_first": "0",
    "vertical_first_if_tall": "12.2",  # more than 100 times as high as wide
    "vertical_first_if_height_shrinks_more": "13.0",  # by more than twice as many pixels as the width
}


def resize_facts() -> dict[str, str]:
    """Pillow's version and its resize rule, to be kept with a model."""
    release = Version(PIL.__version__).release[:2]
    rule = next(name for name, since in reversed(RULES.items()) if release >= Version(since).release)
    return {"pillow_version": PIL.__version__, "resize_rule": rule}


def compare_resize_facts(trained: dict) -> str | None:
    """A warning where the installed Pillow resizes by another rule than in training; None where it doesn't or may not.

    Args:
        trained: result of `resize_facts` in training.
    """
    rule, here = trained.get("resize_rule"), resize_facts()
    if rule is None or rule == here["resize_rule"]:
        return None
    return (
        f"the model was trained with Pillow {trained.get('pillow_version', '(unknown)')} (resize rule {rule}), this is "
        f"Pillow {here['pillow_version']} ({here['resize_rule']}): pixels of some image sizes differ by a few levels; "
        f"install pillow=={trained.get('pillow_version', '')} for the same pixels"
    )
