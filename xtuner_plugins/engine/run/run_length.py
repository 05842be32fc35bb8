"""How long a run is to be, by its settings."""

import math


def check_length(max_iters: int | None, max_epochs: float | None) -> None:
    """Raises `ValueError` unless ``max_iters`` or ``max_epochs`` is given, and both are above 0."""
    if max_iters is None and max_epochs is None:
        raise ValueError("train_cfg needs max_iters (optimizer steps) or max_epochs")
    for name, value in (("max_iters", max_iters), ("max_epochs", max_epochs)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is no length of a run; give more than 0")
