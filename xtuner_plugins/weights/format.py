"""What every format offers: the interface of the modules in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..hub.conversation import Conversation
from .mapping import KeyMapping


class Format(Protocol):
    """A format of model directories: a module with these members; ``detect`` and ``read_config`` only where it is read.

    Attributes:
        NAME: its name for ``--format``.
        PROCESSOR_TOKEN: a token that its processor needs, added after all others; None for none.
    """

    NAME: str
    PROCESSOR_TOKEN: str | None

    def detect(self, fields: Mapping) -> bool:
        """Whether a ``config.json`` is of this format."""

    def keys(self, fields: Mapping) -> KeyMapping | None:
        """Names of training <-> names in a directory with this ``config.json``; None if they are the same."""

    def read_config(self, fields: Mapping, directory: str | Path) -> dict:
        """The complete official fields of a directory with this ``config.json``.

        Raises:
            CheckpointError: an official config can't express it.
        """

    def write_config(self, config: Mapping, tokenizer, num_rows: int) -> dict:
        """``config.json`` from official fields.

        Args:
            config: official fields, complete.
            tokenizer: of the directory, with ``PROCESSOR_TOKEN``.
            num_rows: rows of embedding and head.

        Raises:
            CheckpointError: the format can't express this model; the message names the setting.
        """

    def chat_template(self, tokenizer, conversation: Conversation) -> str:
        """The Jinja template with which other programs prompt as training does (``conversation`` has no turns)."""

    def write_files(self, stage: Path, config: Mapping, tokenizer) -> None:
        """Everything but weights and ``config.json``; arguments as for ``write_config``."""


@dataclass(frozen=True)
class LanguageFormat:
    """A language model of a class that transformers lacks, run as a class of transformers that computes the same.

    It comes in a directory of its own; InternLM2 also comes inside official directories.

    Attributes:
        model_type: `model_type` in its config.
        title: its name in messages.
        read_config: converts its config to that of the other class.
        keys: makes the mapping of names (without prefix) from its config.
        code: code files that an official directory needs to run it.
        buffers: endings of stored names that aren't weights.
    """

    model_type: str
    title: str
    read_config: Callable[[Mapping], dict]
    keys: Callable[[Mapping], KeyMapping]
    code: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
