"""The error of this room; it stands alone, so that a refusal need not import PyTorch."""


class CheckpointError(ValueError):
    """A file or directory isn't what it was given as; the message names it, the reason and the remedy."""
