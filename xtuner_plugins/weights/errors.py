"""The error of this room; it stands alone, so that a refusal need not import PyTorch."""

import functools
from collections.abc import Callable

OWN = __name__.partition(".")[0]
STRANGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class CheckpointError(ValueError):
    """A file or directory isn't what it was given as; the message names it, the reason and the remedy."""


def refusing(read: Callable) -> Callable:
    """For functions that open a path: what a stranger's files make fail in them is a `CheckpointError`, too."""

    @functools.wraps(read)
    def reads(path, *args, **options):
        try:
            return read(path, *args, **options)
        except STRANGE as error:
            if type(error).__module__.startswith(OWN):
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise CheckpointError(f"{path} holds something else than it should ({said}); get it again") from error

    return reads
