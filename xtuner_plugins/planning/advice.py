"""Which settings to change: every suggestion is planned again with the change before it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .memory import GIB, Plan

Replan = Callable[[Sequence[str]], Plan]


def advise(settings: Mapping[str, Any], plan: Plan, available: int, replan: Replan) -> list[str]:
    """Sentences about single settings.

    Args:
        settings: values of the config by their short names, those that it has.
        plan: with these values.
        available: bytes of a GPU.
        replan: the plan with other values, given as `KEY=VALUE` pairs.
    """
    fits = plan.total <= available
    lines = []
    for pairs in _savings(settings) if plan.total > 0.9 * available else _luxuries(settings):
        other = replan(pairs)
        saved = plan.total - other.total
        if fits and other.total <= available and saved < 0:
            lines.append(f"{' '.join(pairs)} fits too: {other.total / GIB:.1f} of {available / GIB:.1f} GiB")
        elif saved > 0.05 * GIB:
            enough = "" if other.total <= available else ", which is not enough"
            lines.append(
                f"{' '.join(pairs)} saves {saved / GIB:.1f} GiB: "
                f"{other.total / GIB:.1f} of {available / GIB:.1f} GiB{enough}"
            )
    return lines


def _savings(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Changes that need less memory, the cheapest for the result first."""
    if settings.get("gradient_checkpointing") is False:
        yield ["gradient_checkpointing=True"]
    batch, accumulation = settings.get("batch_size"), settings.get("accumulative_counts")
    if "pack_tokens" in settings:
        yield [f"pack_tokens={settings['pack_tokens'] // 2}", f"pack_tiles={settings['pack_tiles'] // 2}"]
    elif batch and batch > 1:
        yield [f"batch_size={batch // 2}", f"accumulative_counts={2 * (accumulation or 1)}"]
        if batch > 2:
            yield ["batch_size=1", f"accumulative_counts={batch * (accumulation or 1)}"]
    if (settings.get("max_tiles") or 1) > 1 and "pack_tokens" not in settings:
        yield [f"max_tiles={settings['max_tiles'] // 2}", f"max_length={settings['max_length'] // 2}"]


def _luxuries(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Changes that need more memory and make a run faster."""
    if settings.get("gradient_checkpointing") is True:
        yield ["gradient_checkpointing=False"]
    batch, accumulation = settings.get("batch_size"), settings.get("accumulative_counts")
    if batch and accumulation and accumulation % 2 == 0 and "pack_tokens" not in settings:
        yield [f"batch_size={2 * batch}", f"accumulative_counts={accumulation // 2}"]
