"""Which of its two passes Pillow's resize runs first: three rules, chosen by Pillow's version.

Pixels are rounded to bytes between the passes, so their order matters: a page of 600x900 resized to 448x448 differs by
a few levels between Pillow 12 and 13. The rules were found by comparing both orders with real releases over thousands
of sizes (docs/measurements.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import PIL
from packaging.version import Version

TALL = 100  # times as high as wide


class ResizeRule(NamedTuple):
    """One rule for the order of the passes."""

    name: str  # in checkpoints and messages
    since: tuple[int, int]  # the first Pillow release with it, (major, minor)
    vertical_first: Callable[[int, int, int, int], bool]  # of (width, height, new width, new height)


RULES = (  # oldest first
    ResizeRule("horizontal_first", (0, 0), lambda w, h, new_w, new_h: False),
    ResizeRule("vertical_first_if_tall", (12, 2), lambda w, h, new_w, new_h: h > TALL * w and h > new_h),
    ResizeRule(
        "vertical_first_if_height_shrinks_more",
        (13, 0),
        lambda w, h, new_w, new_h: h > new_h and h - new_h > 2 * (w - new_w),
    ),
)


def resize_rule() -> ResizeRule:
    """The rule of the installed Pillow; releases newer than the last known one have its rule."""
    release = Version(PIL.__version__).release[:2]
    return next(rule for rule in reversed(RULES) if release >= rule.since)


def resize_facts() -> dict[str, str]:
    """Pillow's version and its resize rule, to be kept with a model."""
    return {"pillow_version": PIL.__version__, "resize_rule": resize_rule().name}


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
