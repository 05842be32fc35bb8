"""The error of this room; it stands alone, so that a refusal need not import PyTorch."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

OWN = __name__.partition(".")[0]
STRANGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class CheckpointError(ValueError):
    """A file or directory isn't what it was given as; the message names it, the reason and the remedy."""


@contextlib.contextmanager
def from_outside(what: str | os.PathLike) -> Iterator[None]:
    """Where content from outside is read: what it makes fail is a `CheckpointError`, too; ``what`` names its file."""
    try:
        yield
    except STRANGE as error:
        if type(error).__module__.startswith(OWN):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{what} holds something else than it should ({said}); get it again") from error


def refusing(read: Callable) -> Callable:
    """For functions that open a path, their first argument: they run `from_outside`."""

    @functools.wraps(read)
    def reads(path, *args, **options):
        with from_outside(path):
            return read(path, *args, **options)

    return reads
