"""What every format offers: the interface of the modules in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .key_mapping import KeyMapping


class Format(Protocol):
    """A format of model directories. Each is a module with these members; its own fields are those of its config.

    Attributes:
        NAME: what ``--format`` calls it.
        PROCESSOR_TOKEN: a token that its processor needs, added after all others; None for none.
    """

    NAME: str
    PROCESSOR_TOKEN: str | None

    def detect(self, fields: Mapping) -> bool:
        """Whether a ``config.json`` is of this format."""

    def keys(self, fields: Mapping) -> KeyMapping | None:
        """Names of training <-> names in a directory with this ``config.json``; None where they are the same."""

    def read_config(self, fields: Mapping, directory: str | Path) -> dict:
        """Official fields, complete, of a directory with this ``config.json``.

        Raises:
            CheckpointError: an official config can't say the same.
        """

    def write_config(self, config: Mapping, tokenizer, num_rows: int) -> dict:
        """``config.json`` from official fields.

        Args:
            config: official fields, complete.
            tokenizer: has ``PROCESSOR_TOKEN`` already.
            num_rows: of embedding and head.

        Raises:
            CheckpointError: the format can't express this model; the message names the setting.
        """

    def write_files(self, stage: Path, config: Mapping, tokenizer) -> None:
        """Everything but weights and ``config.json``; arguments as for ``write_config``."""


@dataclass(frozen=True)
class LanguageFormat:
    """A language model of a class that transformers lacks, run as one that it has and that computes the same.

    It stands in a directory of its own; InternLM2 inside an official one, too.

    Attributes:
        model_type: in its config.
        title: what messages call it.
        read_config: its config as the other class's.
        keys: its config to the mapping of names, without prefix.
        code: files without which an official directory that holds it can't run.
        buffers: endings of stored names that are no weights.
    """

    model_type: str
    title: str
    read_config: Callable[[Mapping], dict]
    keys: Callable[[Mapping], KeyMapping]
    code: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
